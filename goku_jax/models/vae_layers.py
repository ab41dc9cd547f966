"""Causal convolutions, norms and blocks of the video autoencoder.

Time is causal everywhere. A clip may be cut between latent frames: a
convolution needs only the last frames of its input before the cut. `left_fn`
says what they are where nothing was carried: the first frame repeated, as at
the start of a clip (CogVideoX, arXiv:2408.06072, 2.1), or a neighbour's frames
where shards of a clip lie on many devices. A stream carries them in the
variable collection `context`, made by one chunk and read by the next.

Letters: B clips, T H W frames, height, width, C channels; t h w of latents.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models.conv import conv3d

REACH = 2  # earlier frames that a 3x3x3 convolution sees


def repeat_first(x_BTHWC, num: int):
  """What stands before the start of a clip."""
  return jnp.repeat(x_BTHWC[:, :1], num, axis=1)


class CausalConv(nn.Module):
  """A 3x3x3 convolution that sees no later frame; zeros beyond the sides."""

  channels: int
  dtype: Any = jnp.float32
  left_fn: Callable = repeat_first
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"]
  ) -> Float[Array, "B T H W D"]:
    shape = (3, 3, 3, x_BTHWC.shape[-1], self.channels)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:])
    x_BTHWC = x_BTHWC.astype(self.dtype)
    if self.has_variable("context", "frames"):
      left = self.get_variable("context", "frames")
    else:
      left = self.left_fn(x_BTHWC, REACH)
    x_BTHWC = jnp.concatenate([left, x_BTHWC], 1)
    if self.is_mutable_collection("context") and not self.is_initializing():
      self.put_variable("context", "frames", x_BTHWC[:, -REACH:])
    kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
    return conv3d(x_BTHWC, kernel) + bias


class GroupNorm(nn.Module):
  """Group norm, of each frame by itself or of all frames given together."""

  groups: int
  per_frame: bool = True
  epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"]
  ) -> Float[Array, "B T H W C"]:
    C = x_BTHWC.shape[-1]
    scale = self.param("scale", nn.initializers.ones_init(), (C,))
    bias = self.param("bias", nn.initializers.zeros_init(), (C,))
    x = x_BTHWC.astype(jnp.float32)
    x = x.reshape(*x.shape[:-1], self.groups, C // self.groups)
    axes = (2, 3, 5) if self.per_frame else (1, 2, 3, 5)
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
    return x.reshape(x_BTHWC.shape) * scale + bias


class SpatialNorm(nn.Module):
  """A group norm whose scale and shift are read from the latents below.

  At the start they are those of the plain norm (MoVQ, arXiv:2209.09002).
  """

  norm: Callable  # makes the norm
  is_first: bool

  @nn.compact
  def __call__(
    self,
    x_BTHWC: Float[Array, "B T H W C"],
    latents_BTHWC: Float[Array, "B t h w c"],
  ) -> Float[Array, "B T H W C"]:
    C = x_BTHWC.shape[-1]
    # Pointwise, so it may come before the latents are repeated.
    modulation = nn.Dense(
      2 * C,
      kernel_init=nn.initializers.zeros_init(),
      bias_init=lambda rng, shape, dtype: jnp.repeat(
        jnp.array([1, 0], dtype), C, total_repeat_length=shape[0]
      ),
      name="modulation",
    )(latents_BTHWC.astype(jnp.float32))
    modulation = resize_nearest(modulation, x_BTHWC.shape, self.is_first)
    scale, shift = jnp.split(modulation, 2, -1)
    return self.norm(name="norm")(x_BTHWC) * scale + shift


class ResBlock(nn.Module):
  """Norm, swish, convolution, twice, beside the identity."""

  channels: int
  conv: Callable  # makes a causal convolution
  norm: Callable

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"], *condition
  ) -> Float[Array, "B T H W D"]:
    h = x_BTHWC
    for i in range(2):
      h = nn.silu(self.norm(name=f"norm_{i}")(h, *condition))
      h = self.conv(self.channels, name=f"conv_{i}")(h)
    if x_BTHWC.shape[-1] != self.channels:
      x_BTHWC = nn.Dense(self.channels, dtype=h.dtype, name="shortcut")(x_BTHWC)
    return x_BTHWC + h


class Downsample(nn.Module):
  """Half the height and width, and half the frames where `in_time`."""

  in_time: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"], is_first: bool
  ) -> Float[Array, "B t h w C"]:
    if self.in_time:
      x_BTHWC = apart(_mean_of_pairs, x_BTHWC, is_first)
    # Zeros to the right and below alone, as the weights of others expect.
    return nn.Conv(
      x_BTHWC.shape[-1],
      (3, 3),
      strides=(2, 2),
      padding=((0, 1), (0, 1)),
      dtype=self.dtype,
      name="conv2d",
    )(x_BTHWC)


class Upsample(nn.Module):
  """Twice the height and width, and twice the frames where `in_time`."""

  in_time: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B t h w C"], is_first: bool
  ) -> Float[Array, "B T H W C"]:
    if self.in_time:
      x_BTHWC = apart(lambda x: jnp.repeat(x, 2, 1), x_BTHWC, is_first)
    x_BTHWC = jnp.repeat(jnp.repeat(x_BTHWC, 2, 2), 2, 3)
    return nn.Conv(x_BTHWC.shape[-1], (3, 3), dtype=self.dtype, name="conv2d")(
      x_BTHWC
    )


def resize_nearest(x_BTHWC, shape, is_first: bool):
  """Repeats frames and pixels up to those of `shape`; the first frame once."""
  _, t, h, w, _ = x_BTHWC.shape
  _, T, H, W, _ = shape
  times = (T - is_first) // max(t - is_first, 1)
  x_BTHWC = apart(lambda x: jnp.repeat(x, times, 1), x_BTHWC, is_first)
  return jnp.repeat(jnp.repeat(x_BTHWC, H // h, 2), W // w, 3)


def apart(fn, x_BTHWC, is_first: bool):
  """`fn` of the frames, the first of a clip kept as it is."""
  if not is_first:
    return fn(x_BTHWC)
  return jnp.concatenate([x_BTHWC[:, :1], fn(x_BTHWC[:, 1:])], 1)


def _mean_of_pairs(x_BTHWC):
  B, T, *rest = x_BTHWC.shape
  return x_BTHWC.reshape(B, T // 2, 2, *rest).mean(2)
