"""The joint image-and-video autoencoder: clips of 4k+1 frames to k+1 latents.

CogVideoX's (arXiv:2408.06072, section 2.1), which Goku cites: levels of
residual blocks, sides halved between them, frames halved between the first
`time_levels`. The first frame stands alone, so an image is a clip of one
frame through the same weights. Small canvases and CPUs cut patches first, so
that no convolution runs at full resolution.

Pixels are in [-1, 1]; `latent_mean` and `latent_std`, measured by `prepare`,
travel with the weights and bring latents to unit variance.

Letters: B clips, T H W frames, height, width, C channels (of the grid that
the word before them names).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from goku_jax.models import layers, wan_vae
from goku_jax.models.vae_layers import (
  CausalConv,
  Downsample,
  GroupNorm,
  ResBlock,
  SpatialNorm,
  Upsample,
  repeat_first,
)
from goku_jax.typing import UserError

NORMS = ("frame", "group")
# Log-variance at which a linear coder begins: its noise drowns no fine wave.
NARROW = -8.0


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Sizes of the autoencoder."""

  width: int  # of the level with the largest frames
  multipliers: tuple[int, ...]  # of the width, level by level
  time_levels: int  # how many of the downsamplings halve time too
  encoder_blocks: int  # a level
  decoder_blocks: int  # a level
  mid_blocks: int  # at the latents, in encoder and decoder each
  latent_channels: int
  patch: tuple[int, int, int] = (1, 1, 1)  # frames, height, width
  # Statistics of each frame, or of the frames of a chunk, as CogVideoX's.
  norm: str = "frame"
  groups: int = 32
  latent_norms: bool = True  # the decoder's norms read the latents
  # A linear coder of blocks of the stride beside the levels, which learn what
  # it leaves, as residual autoencoding does (DC-AE, arXiv:2410.10733, 3.2).
  linear: bool = False
  channels: int = 3
  remat: bool = False  # blocks compute again backwards and keep their inputs
  dtype: Any = jnp.float32

  @property
  def stride(self) -> tuple[int, int, int]:
    """Frames, height and width of a latent position."""
    t, h, w = self.patch
    side = 2 ** (len(self.multipliers) - 1)
    return t * 2**self.time_levels, h * side, w * side

  @property
  def flops_per_position(self) -> int:
    """Forward, at one latent position, of matrix products alone."""
    widths = [self.width * m for m in self.multipliers]
    last = len(widths) - 1
    patch = math.prod(self.patch)
    block = math.prod(self.stride) * self.channels
    ends = (27 if patch == 1 else 1) * patch * self.channels * widths[0]
    frames = 2**self.time_levels
    total = 2 * ends * frames * 4**last
    total += 27 * 3 * self.latent_channels * widths[-1]  # mean, variance, back
    total += self.linear * 2 * block * self.latent_channels
    total += 2 * self.mid_blocks * _macs(widths[-1], widths[-1])
    above = widths[0]
    for i, width in enumerate(widths):
      n = 4 ** (last - i) * 2 ** max(self.time_levels - i, 0)
      rest = (self.encoder_blocks - 1) * _macs(width, width)
      total += n * (_macs(above, width) + rest)
      if i < last:
        total += n // (8 if i < self.time_levels else 4) * 9 * width**2
      above = width
    for i, width in reversed(list(enumerate(widths))):
      n = 4 ** (last - i) * 2 ** min(last - i, self.time_levels)
      rest = (self.decoder_blocks - 1) * _macs(width, width)
      total += n * (_macs(above, width) + rest)
      if i > 0:
        total += n * (8 if last - i < self.time_levels else 4) * 9 * width**2
      above = width
    return 2 * total

  def make_halves(self, left_fn: Callable | None):
    """Encoder and decoder; `left_fn` repeats the first frame if not given."""
    left_fn = left_fn or repeat_first
    return Encoder(self, left_fn), Decoder(self, left_fn)


def _macs(above: int, width: int) -> int:
  """Products at one position of a residual block."""
  shortcut = above * width if above != width else 0
  return 27 * width * (above + width) + shortcut


VARIANTS = {
  # CogVideoX's autoencoder: 215.6 M parameters.
  "goku": dict(
    width=128,
    multipliers=(1, 2, 2, 4),
    time_levels=2,
    encoder_blocks=3,
    decoder_blocks=4,
    mid_blocks=2,
    latent_channels=16,
  ),
  # Goku's 8x8x4 and 16 channels for CPUs: no convolution above the latents.
  "small": dict(
    width=192,
    multipliers=(1,),
    time_levels=0,
    encoder_blocks=2,
    decoder_blocks=4,
    mid_blocks=0,
    latent_channels=16,
    patch=(4, 8, 8),
    linear=True,
  ),
  "digits": dict(
    width=64,
    multipliers=(1,),
    time_levels=0,
    encoder_blocks=2,
    decoder_blocks=3,
    mid_blocks=0,
    latent_channels=4,
    patch=(4, 4, 4),
    groups=8,
    latent_norms=False,  # the flow model draws more digits right (docs/vae.md)
  ),
  "debug": dict(
    width=16,
    multipliers=(1,),
    time_levels=0,
    encoder_blocks=1,
    decoder_blocks=1,
    mid_blocks=0,
    latent_channels=4,
    patch=(4, 4, 4),
    groups=8,
  ),
}


class Encoder(nn.Module):
  """Mean and log-variance of the posterior."""

  config: VAEConfig
  left_fn: Callable

  @nn.compact
  def __call__(self, video_BTHWC, is_first=True):
    cfg = self.config
    conv, block = _makers(cfg, self.left_fn, _norm(cfg))
    x = _cut(video_BTHWC, cfg.patch, is_first)
    x = _end(cfg, conv, cfg.width, "in")(x)
    for i, multiplier in enumerate(cfg.multipliers):
      for j in range(cfg.encoder_blocks):
        x = block(cfg.width * multiplier, name=f"level_{i}_block_{j}")(x)
      if i < len(cfg.multipliers) - 1:
        x = Downsample(i < cfg.time_levels, cfg.dtype, name=f"level_{i}_down")(
          x, is_first
        )
    for j in range(cfg.mid_blocks):
      x = block(x.shape[-1], name=f"mid_block_{j}")(x)
    x = nn.silu(_norm(cfg)(name="norm_out")(x))
    x = conv(
      2 * cfg.latent_channels, kernel_init=_last_init(cfg), name="conv_out"
    )(x)
    mean, logvar = jnp.split(x.astype(jnp.float32), 2, -1)
    if cfg.linear:
      blocks = _cut(video_BTHWC, cfg.stride, is_first)
      mean += nn.Dense(
        cfg.latent_channels,
        kernel_init=lambda *_: _cosines(cfg, -1).T,
        name="linear",
      )(blocks)
      logvar += NARROW
    return mean, jnp.clip(logvar, -30.0, 20.0)


class Decoder(nn.Module):
  """Pixels of latents."""

  config: VAEConfig
  left_fn: Callable

  @nn.compact
  def __call__(self, latents_BTHWC, is_first=True):
    cfg = self.config
    z, norm, read = latents_BTHWC, _norm(cfg), ()
    if cfg.latent_norms:
      norm, read = functools.partial(SpatialNorm, norm, is_first), (z,)
    conv, block = _makers(cfg, self.left_fn, norm)
    x = conv(cfg.width * cfg.multipliers[-1], name="conv_in")(z)
    for j in range(cfg.mid_blocks):
      x = block(x.shape[-1], name=f"mid_block_{j}")(x, *read)
    for i, multiplier in reversed(list(enumerate(cfg.multipliers))):
      for j in range(cfg.decoder_blocks):
        x = block(cfg.width * multiplier, name=f"level_{i}_block_{j}")(x, *read)
      if i > 0:
        # The deepest double time first, as CogVideoX's do.
        in_time = len(cfg.multipliers) - i <= cfg.time_levels
        x = Upsample(in_time, cfg.dtype, name=f"level_{i}_up")(x, is_first)
    x = nn.silu(norm(name="norm_out")(x, *read))
    pixels = math.prod(cfg.patch) * cfg.channels
    x = _end(cfg, conv, pixels, "out", kernel_init=_last_init(cfg))(x)
    video = _join(x.astype(jnp.float32), cfg.patch, is_first)
    if cfg.linear:
      blocks = nn.Dense(
        math.prod(cfg.stride) * cfg.channels,
        kernel_init=lambda *_: _cosines(cfg, 1),
        name="linear",
      )(z)
      video += _join(blocks, cfg.stride, is_first)
    return video


def _norm(cfg):
  """What makes the plain norm."""
  return functools.partial(GroupNorm, cfg.groups, cfg.norm == "frame")


def _makers(cfg, left_fn, norm):
  """What makes convolutions, and blocks of them."""
  conv = functools.partial(CausalConv, dtype=cfg.dtype, left_fn=left_fn)
  block = nn.remat(ResBlock) if cfg.remat else ResBlock
  return conv, functools.partial(block, conv=conv, norm=norm)


def _end(cfg, conv, channels, name, **init):
  """The layer at the pixels: a patch has its neighbours in it already."""
  if math.prod(cfg.patch) == 1:
    return conv(channels, name=f"conv_{name}", **init)
  return nn.Dense(channels, dtype=cfg.dtype, name=f"patch_{name}", **init)


def _last_init(cfg):
  """Beside a linear coder the levels begin silent."""
  zeros, normal = nn.initializers.zeros_init(), nn.initializers.lecun_normal()
  return zeros if cfg.linear else normal


def _cosines(cfg, power):
  """`[c, t h w C]`: the lowest waves of a block times a power of their sizes.

  The linear coder begins as the discrete cosine transform, whose waves are
  nearly the principal components of films (Ahmed et al. 1974). Sizes fall as
  the 2.5th power of the product of 1 + frequency, from that of pixels which
  deviate by a half: over them codes of the film of docs/vae.md deviate by 0.6
  to 2.4.
  """
  block, num = (*cfg.stride, cfg.channels), cfg.latent_channels
  order = lambda wave: math.prod(1 + i for i in wave)
  waves = sorted(np.ndindex(*block), key=order)[:num]
  chosen = np.ravel_multi_index(np.transpose(waves), block)
  spectra = jnp.eye(math.prod(block))[chosen].reshape(num, *block)
  cosines = jax.scipy.fft.idctn(spectra, axes=(1, 2, 3, 4), norm="ortho")
  falls = jnp.array([order(wave) ** -2.5 for wave in waves])
  size_c = 0.5 * math.sqrt(math.prod(block)) * falls
  return cosines.reshape(num, -1) * size_c[:, None] ** power


def _cut(video_BTHWC, patch, is_first):
  """Patches as channels; the first frame is repeated until it fills one."""
  t, h, w = patch
  if is_first:
    first = repeat_first(video_BTHWC, t - 1)
    video_BTHWC = jnp.concatenate([first, video_BTHWC], 1)
  return einops.rearrange(
    video_BTHWC,
    "B (T t) (H h) (W w) C -> B T H W (t h w C)",
    t=t,
    h=h,
    w=w,
  )


def _join(patches_BTHWC, patch, is_first):
  """The pixels of patches, without the copies of the first frame."""
  t, h, w = patch
  video_BTHWC = einops.rearrange(
    patches_BTHWC,
    "B T H W (t h w C) -> B (T t) (H h) (W w) C",
    t=t,
    h=h,
    w=w,
  )
  return video_BTHWC[:, t - 1 :] if is_first else video_BTHWC


class VAE(nn.Module):
  """`encode` and `decode`; calling it does both, sampling with `noise`.

  Both go on where the last chunk ended when `is_first=False` and the
  `context` collection of that chunk is given (see `vae_stream`).
  """

  config: VAEConfig | wan_vae.WanConfig
  left_fn: Callable | None = None  # frames before a chunk; None: a clip starts

  def setup(self):
    self.encoder, self.decoder = self.config.make_halves(self.left_fn)

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


def make_vae(variant: str, *, dtype: str = "float32", **sizes) -> VAE:
  """The autoencoder of a named variant, its sizes overridden by `sizes`.

  Raises:
    UserError: the variant, norm or dtype is unknown, or sizes do not fit.
  """
  known = VARIANTS | wan_vae.VARIANTS
  if variant not in known:
    names = ", ".join(known)
    raise UserError(f"model.variant={variant!r} is not one of {names}")
  sizes = known[variant] | sizes | dict(dtype=layers.read_dtype(dtype))
  # JSON has lists, and a model is hashed.
  sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
  if variant in wan_vae.VARIANTS:
    return VAE(wan_vae.WanConfig(**sizes))
  unknown = sizes.keys() - VAEConfig.__dataclass_fields__.keys()
  if unknown:
    raise UserError(f"the autoencoder has no {', '.join(sorted(unknown))}")
  config = VAEConfig(**sizes)
  if config.norm not in NORMS:
    raise UserError(
      f"model.norm={config.norm!r} is not one of {', '.join(NORMS)}"
    )
  for multiplier in config.multipliers:
    if config.width * multiplier % config.groups:
      raise UserError(
        f"model.width={config.width} x {multiplier} is not a multiple of"
        f" model.groups={config.groups}"
      )
  if not 0 <= config.time_levels < len(config.multipliers):
    raise UserError(
      f"model.time_levels={config.time_levels}: there are"
      f" {len(config.multipliers) - 1} downsamplings to choose from"
    )
  return VAE(config)


def abstract_params(model: VAE):
  """Shapes and dtypes of the parameters."""
  clip = jnp.zeros((1, 1, *model.config.stride[1:], 3))
  return jax.eval_shape(model.init, jax.random.key(0), clip)["params"]
