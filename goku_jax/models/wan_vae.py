"""Wan 2.1's autoencoder (arXiv:2503.20314, section 4.1), for its weights.

As CogVideoX's it is causal, 8x8x4 and lets the first frame stand alone. It
differs in zeros before the first frame, norms of single positions, attention
within each frame at the latents, and learned convolutions in time where
frames are halved and doubled.

Letters: B clips, T H W frames, height, width, C channels; t h w of latents.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models.vae_layers import CausalConv, ResBlock, apart


@dataclasses.dataclass(frozen=True)
class WanConfig:
  """Sizes of the autoencoder."""

  width: int  # of the level with the largest frames
  multipliers: tuple[int, ...]  # of the width, level by level
  time_levels: int  # how many of the deepest downsamplings halve time too
  blocks: int  # a level of the encoder; the decoder has one more
  latent_channels: int
  channels: int = 3
  remat: bool = False  # blocks compute again backwards and keep their inputs
  dtype: Any = jnp.float32
  norm: ClassVar[str] = "position"  # sees one position alone, so any chunk does

  @property
  def stride(self) -> tuple[int, int, int]:
    """Frames, height and width of a latent position."""
    side = 2 ** (len(self.multipliers) - 1)
    return 2**self.time_levels, side, side

  @property
  def flops_per_position(self) -> int:
    """Forward, at one latent position; attention's share grows and is not in.

    That is 4 h w C of each of its frames, with C channels at the latents.
    """
    last = len(self.multipliers) - 1
    widths = [self.width * m for m in self.multipliers]
    block = lambda above, width: (
      27 * width * (above + width) + (above != width and above * width)
    )
    z, top = self.latent_channels, widths[-1]
    frames = 2**self.time_levels
    total = 2 * 27 * self.channels * widths[0] * frames * 4**last
    total += 3 * 27 * z * top + 5 * z * z
    total += 2 * (2 * block(top, top) + 4 * top**2)
    for i, width in enumerate(widths):
      n = 4 ** (last - i) * 2 ** min(last - i, self.time_levels)
      total += n * block(widths[max(i - 1, 0)], width)
      total += n * (self.blocks - 1) * block(width, width)
      above = top if i == last else widths[i + 1] // 2
      total += n * (block(above, width) + self.blocks * block(width, width))
      if i < last:
        in_time = self.halves_time(i)
        after = n // (2 if in_time else 1)  # of the frames, at these sides
        total += n // 4 * 9 * width**2 + in_time * after // 4 * 3 * width**2
        below = widths[i + 1]
        total += n * 9 * below * (below // 2)
        total += in_time * after // 4 * 6 * below**2
    return 2 * total

  def halves_time(self, level: int) -> bool:
    """Whether frames are halved below a level."""
    return 0 <= len(self.multipliers) - 2 - level < self.time_levels

  def make_halves(self, left_fn: Callable | None):
    """Encoder and decoder; `left_fn` gives zeros at the start of a clip."""
    left_fn = left_fn or zeros_before
    return Encoder(self, left_fn), Decoder(self, left_fn)


VARIANTS = {
  # Wan 2.1's autoencoder: 126.9 M parameters.
  "wan": dict(
    width=96,
    multipliers=(1, 2, 4, 4),
    time_levels=2,
    blocks=2,
    latent_channels=16,
  ),
  "wan_debug": dict(
    width=8,
    multipliers=(1, 2, 2),
    time_levels=1,
    blocks=1,
    latent_channels=8,
  ),
}


def zeros_before(x_BTHWC, num: int):
  """What stands before the start of a clip."""
  B, _, *rest = x_BTHWC.shape
  return jnp.zeros((B, num, *rest), x_BTHWC.dtype)


class PositionNorm(nn.Module):
  """The channels of a position brought to a mean square of 1, and scaled."""

  @nn.compact
  def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    C = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones_init(), (C,))
    x = x.astype(jnp.float32)
    # Torch's `normalize`: the length, not the mean square, is kept from zero.
    power = jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24)
    return x * jax.lax.rsqrt(power) * (math.sqrt(C) * scale)


class TimeConv(nn.Module):
  """A convolution of 3 frames that sees no later one, of every `stride`th.

  `left_fn` gives the `3 - stride` frames before the first chunk.
  """

  channels: int
  stride: int
  left_fn: Callable
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"]
  ) -> Float[Array, "B t H W D"]:
    C, reach = x_BTHWC.shape[-1], 3 - self.stride
    kernel = self.param(
      "kernel", nn.initializers.lecun_normal(), (3, C, self.channels)
    )
    bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
    x_BTHWC = x_BTHWC.astype(self.dtype)
    if self.has_variable("context", "frames"):
      left = self.get_variable("context", "frames")
    else:
      left = self.left_fn(x_BTHWC, reach)
    x_BTHWC = jnp.concatenate([left, x_BTHWC], 1)
    if self.is_mutable_collection("context") and not self.is_initializing():
      self.put_variable("context", "frames", x_BTHWC[:, -reach:])
    end = x_BTHWC.shape[1] - 2
    taps = [x_BTHWC[:, i : max(end, 0) + i : self.stride] for i in range(3)]
    kernel = kernel.astype(self.dtype).reshape(3 * C, -1)
    return jnp.concatenate(taps, -1) @ kernel + bias.astype(self.dtype)


class Attention(nn.Module):
  """One head over the positions of each frame, beside the identity."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"]
  ) -> Float[Array, "B T H W C"]:
    B, T, H, W, C = x_BTHWC.shape
    x = PositionNorm(name="norm")(x_BTHWC)
    qkv = nn.Dense(3 * C, dtype=self.dtype, name="qkv")(x)
    qkv = qkv.reshape(B * T, H * W, 1, 3 * C)
    x = nn.dot_product_attention(*jnp.split(qkv, 3, -1))
    x = nn.Dense(C, dtype=self.dtype, name="out")(x.reshape(x_BTHWC.shape))
    return x_BTHWC + x


class Downsample(nn.Module):
  """Half the height and width, then half the frames where `in_time`."""

  in_time: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"], is_first: bool
  ) -> Float[Array, "B t h w C"]:
    C = x_BTHWC.shape[-1]
    x_BTHWC = nn.Conv(
      C,
      (3, 3),
      strides=(2, 2),
      padding=((0, 1), (0, 1)),
      dtype=self.dtype,
      name="conv2d",
    )(x_BTHWC)
    if not self.in_time:
      return x_BTHWC
    # The first frame is the left context of those after it.
    conv = TimeConv(C, 2, lambda x, num: x[:, :0], self.dtype, name="time")
    if not is_first:
      return conv(x_BTHWC)
    return jnp.concatenate([x_BTHWC[:, :1], conv(x_BTHWC)], 1)


class Upsample(nn.Module):
  """Twice the frames where `in_time`, then twice the height and width."""

  in_time: bool
  left_fn: Callable
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B t h w C"], is_first: bool
  ) -> Float[Array, "B T H W D"]:
    C = x_BTHWC.shape[-1]
    if self.in_time:
      # Of a clip the first frame alone is not seen by those after it.
      conv = TimeConv(2 * C, 1, self.left_fn, self.dtype, name="time")
      x_BTHWC = apart(lambda x: _pairs(conv(x)), x_BTHWC, is_first)
    x_BTHWC = jnp.repeat(jnp.repeat(x_BTHWC, 2, 2), 2, 3)
    return nn.Conv(C // 2, (3, 3), dtype=self.dtype, name="conv2d")(x_BTHWC)


def _pairs(x_BTHWC):
  """Two frames of each, one from either half of its channels."""
  B, T, H, W, C = x_BTHWC.shape
  x = x_BTHWC.reshape(B, T, H, W, 2, C // 2)
  return jnp.moveaxis(x, 4, 2).reshape(B, 2 * T, H, W, C // 2)


class Encoder(nn.Module):
  """Mean and log-variance of the posterior."""

  config: WanConfig
  left_fn: Callable

  @nn.compact
  def __call__(self, video_BTHWC, is_first=True):
    cfg = self.config
    conv, block = _makers(cfg, self.left_fn)
    x = conv(cfg.width, name="conv_in")(video_BTHWC)
    for i, multiplier in enumerate(cfg.multipliers):
      for j in range(cfg.blocks):
        x = block(cfg.width * multiplier, name=f"level_{i}_block_{j}")(x)
      if i < len(cfg.multipliers) - 1:
        x = Downsample(cfg.halves_time(i), cfg.dtype, name=f"level_{i}_down")(
          x, is_first
        )
    x = _middle(cfg, block, x)
    x = nn.silu(PositionNorm(name="norm_out")(x))
    x = conv(2 * cfg.latent_channels, name="conv_out")(x)
    x = nn.Dense(x.shape[-1], name="quant")(x.astype(jnp.float32))
    mean, logvar = jnp.split(x, 2, -1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


class Decoder(nn.Module):
  """Pixels of latents."""

  config: WanConfig
  left_fn: Callable

  @nn.compact
  def __call__(self, latents_BTHWC, is_first=True):
    cfg = self.config
    conv, block = _makers(cfg, self.left_fn)
    x = nn.Dense(cfg.latent_channels, name="quant")(latents_BTHWC)
    x = conv(cfg.width * cfg.multipliers[-1], name="conv_in")(x)
    x = _middle(cfg, block, x)
    for i, multiplier in reversed(list(enumerate(cfg.multipliers))):
      for j in range(cfg.blocks + 1):
        x = block(cfg.width * multiplier, name=f"level_{i}_block_{j}")(x)
      if i > 0:
        x = Upsample(
          cfg.halves_time(i - 1), self.left_fn, cfg.dtype, name=f"level_{i}_up"
        )(x, is_first)
    x = nn.silu(PositionNorm(name="norm_out")(x))
    return conv(cfg.channels, name="conv_out")(x).astype(jnp.float32)


def _makers(cfg, left_fn):
  """What makes convolutions, and blocks of them."""
  conv = functools.partial(CausalConv, dtype=cfg.dtype, left_fn=left_fn)
  block = nn.remat(ResBlock) if cfg.remat else ResBlock
  return conv, functools.partial(block, conv=conv, norm=PositionNorm)


def _middle(cfg, block, x_BTHWC):
  x_BTHWC = block(x_BTHWC.shape[-1], name="mid_block_0")(x_BTHWC)
  x_BTHWC = Attention(cfg.dtype, name="mid_attn")(x_BTHWC)
  return block(x_BTHWC.shape[-1], name="mid_block_1")(x_BTHWC)
