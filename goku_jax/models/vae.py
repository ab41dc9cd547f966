"""The joint image-and-video autoencoder: clips of 4k+1 frames to k+1 latents.

An image is a clip of one frame, through the same weights. The first frame
stands alone: it is repeated until it fills a patch in time, so the first
latent depends on it only. Patches are cut first, by one linear layer, and all
convolutions run on their grid, which suits small canvases.

Pixels are in [-1, 1]; `latent_mean` and `latent_std`, measured by `prepare`,
travel with the weights and bring latents to unit variance.

Letters: B clips, T H W frames, height, width, C channels (of the grid that
the word before them names).
"""

import dataclasses
import functools
import math
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models import layers
from goku_jax.models.vae_layers import CausalConv, FrameNorm, ResBlock
from goku_jax.typing import UserError


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Sizes of the autoencoder."""

  width: int
  encoder_blocks: int
  decoder_blocks: int
  latent_channels: int
  channels: int = 3
  stride: tuple[int, int, int] = (4, 4, 4)  # frames, height, width
  dtype: Any = jnp.float32

  @property
  def flops_per_position(self) -> int:
    """Forward, at one latent position."""
    patch = math.prod(self.stride) * self.channels
    blocks = self.encoder_blocks + self.decoder_blocks
    latent = 3 * self.latent_channels  # mean and log-variance, and back in
    convolved = 27 * (latent + 2 * blocks * self.width)
    return 2 * self.width * (2 * patch + convolved)


VARIANTS = {  # for CPUs and small canvases
  "digits": dict(
    width=64, encoder_blocks=2, decoder_blocks=3, latent_channels=4
  ),
  "debug": dict(
    width=16, encoder_blocks=1, decoder_blocks=1, latent_channels=4
  ),
}


class Encoder(nn.Module):
  """Mean and log-variance of the posterior."""

  config: VAEConfig

  @nn.compact
  def __call__(self, video_BTHWC, is_first=True):
    cfg = self.config
    t, h, w = cfg.stride
    if is_first:
      first = jnp.repeat(video_BTHWC[:, :1], t - 1, axis=1)
      video_BTHWC = jnp.concatenate([first, video_BTHWC], 1)
    x = einops.rearrange(
      video_BTHWC,
      "B (T t) (H h) (W w) C -> B T H W (t h w C)",
      t=t,
      h=h,
      w=w,
    )
    x = nn.Dense(cfg.width, dtype=cfg.dtype, name="patch_in")(x)
    for i in range(cfg.encoder_blocks):
      x = ResBlock(cfg.dtype, name=f"block_{i}")(x)
    x = nn.silu(FrameNorm(name="norm_out")(x))
    x = CausalConv(2 * cfg.latent_channels, dtype=cfg.dtype, name="conv_out")(x)
    mean, logvar = jnp.split(x.astype(jnp.float32), 2, -1)
    return mean, jnp.clip(logvar, -20.0, 10.0)


class Decoder(nn.Module):
  """Pixels of latents."""

  config: VAEConfig

  @nn.compact
  def __call__(self, latents_BTHWC, is_first=True):
    cfg = self.config
    t, h, w = cfg.stride
    x = CausalConv(cfg.width, dtype=cfg.dtype, name="conv_in")(latents_BTHWC)
    for i in range(cfg.decoder_blocks):
      x = ResBlock(cfg.dtype, name=f"block_{i}")(x)
    x = nn.silu(FrameNorm(name="norm_out")(x))
    patch = t * h * w * cfg.channels
    x = nn.Dense(patch, dtype=cfg.dtype, name="patch_out")(x)
    video_BTHWC = einops.rearrange(
      x.astype(jnp.float32),
      "B T H W (t h w C) -> B (T t) (H h) (W w) C",
      t=t,
      h=h,
      w=w,
    )
    return video_BTHWC[:, t - 1 :] if is_first else video_BTHWC


class VAE(nn.Module):
  """`encode` and `decode`; calling it does both, sampling with `noise`.

  Both go on where the last chunk ended when `is_first=False` and the
  `context` collection of that chunk is given (see `vae_layers`).
  """

  config: VAEConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.config)

  def encode(
    self, video_BTHWC: Float[Array, "B T H W C"], is_first: bool = True
  ) -> tuple[Float[Array, "B t h w c"], Float[Array, "B t h w c"]]:
    """Posterior mean and log-variance of pixels in [-1, 1]."""
    return self.encoder(video_BTHWC, is_first)

  def decode(
    self, latents_BTHWC: Float[Array, "B t h w c"], is_first: bool = True
  ) -> Float[Array, "B T H W C"]:
    """Pixels, about [-1, 1], not clipped."""
    return self.decoder(latents_BTHWC, is_first)

  def __call__(
    self,
    video_BTHWC: Float[Array, "B T H W C"],
    noise_BTHWC: Float[Array, "B t h w c"] | None = None,
  ) -> tuple[
    Float[Array, "B T H W C"],
    Float[Array, "B t h w c"],
    Float[Array, "B t h w c"],
  ]:
    mean, logvar = self.encode(video_BTHWC)
    noise = jnp.zeros_like(mean) if noise_BTHWC is None else noise_BTHWC
    video = self.decode(mean + jnp.exp(0.5 * logvar) * noise)
    return video, mean, logvar

  def latent_shape(self, video_shape) -> tuple[int, ...]:
    """`[B, t, h, w, c]` of a clip `[B, T, H, W, C]`.

    Raises:
      UserError: the stride does not divide it, its first frame left aside.
    """
    B, T, H, W, _ = video_shape
    t, h, w = self.config.stride
    if (T - 1) % t or H % h or W % w:
      raise UserError(
        f"a clip of {T} frames of {H}x{W} pixels does not fit the autoencoder's"
        f" stride: set {t}k+1 frames and sides that {h}x{w} divides"
      )
    return B, (T - 1) // t + 1, H // h, W // w, self.config.latent_channels


@functools.partial(jax.jit, static_argnums=0)
def encode_pixels(model: VAE, params, video_BTHWC):
  """Posterior mean and log-variance of videos in uint8."""
  video_BTHWC = video_BTHWC.astype(jnp.float32) / 127.5 - 1
  return model.apply({"params": params}, video_BTHWC, method="encode")


def make_vae(variant: str, *, dtype: str = "float32", **sizes) -> VAE:
  """The autoencoder of a named variant, its sizes overridden by `sizes`.

  Raises:
    UserError: the variant or dtype is unknown, or the width does not fit.
  """
  if variant not in VARIANTS:
    known = ", ".join(VARIANTS)
    raise UserError(f"model.variant={variant!r} is not one of {known}")
  sizes = VARIANTS[variant] | sizes | dict(dtype=layers.read_dtype(dtype))
  config = VAEConfig(**sizes)
  if config.width % FrameNorm.groups:
    raise UserError(
      f"model.width={config.width} is not a multiple of {FrameNorm.groups},"
      " the groups of its norms"
    )
  return VAE(config)
