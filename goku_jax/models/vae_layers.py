"""Causal convolutions and norms of the video autoencoder.

Every layer treats time causally and each frame's norm by itself, so a clip
may be cut anywhere between latent frames: a layer needs only the last frames
of its input before the cut. They travel in the variable collection
`context`, made by one chunk and read by the next; without it the first frame
is repeated, as at the start of a clip (CogVideoX, arXiv:2408.06072, 2.1).

Letters: B clips, T H W frames, height, width, C channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class CausalConv(nn.Module):
  """A 3x3x3 convolution that sees no later frame; zeros beyond the sides.

  Computed as one 2-D convolution over the channels of three neighbouring
  frames: the same sum, 2 to 5 times faster than a 3-D one on a CPU.
  """

  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"]
  ) -> Float[Array, "B T H W D"]:
    shape = (3, 3, 3, x_BTHWC.shape[-1], self.channels)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(
      self.dtype
    )
    bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:])
    x_BTHWC = x_BTHWC.astype(self.dtype)
    if self.has_variable("context", "frames"):
      left = self.get_variable("context", "frames")
    else:
      left = jnp.repeat(x_BTHWC[:, :1], 2, axis=1)
    x = jnp.concatenate([left, x_BTHWC], 1)
    if self.is_mutable_collection("context") and not self.is_initializing():
      self.put_variable("context", "frames", x[:, -2:])
    T = x_BTHWC.shape[1]
    x = jnp.concatenate([x[:, i : i + T] for i in range(3)], -1)
    kernel = jnp.concatenate(list(kernel), axis=-2)  # [3, 3, 3 C, D]
    y = jax.lax.conv_general_dilated(
      x.reshape(-1, *x.shape[2:]),
      kernel,
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*x.shape[:-1], self.channels) + bias


class FrameNorm(nn.Module):
  """Group norm whose statistics are each frame's own."""

  groups: int = 8
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
    mean = x.mean((2, 3, 5), keepdims=True)
    variance = jnp.square(x - mean).mean((2, 3, 5), keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
    return x.reshape(x_BTHWC.shape) * scale + bias


class ResBlock(nn.Module):
  """Norm, swish, convolution, twice, beside the identity."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: Float[Array, "B T H W C"]
  ) -> Float[Array, "B T H W C"]:
    C = x_BTHWC.shape[-1]
    conv = lambda name: CausalConv(C, dtype=self.dtype, name=name)
    h = conv("conv_0")(nn.silu(FrameNorm(name="norm_0")(x_BTHWC)))
    h = conv("conv_1")(nn.silu(FrameNorm(name="norm_1")(h)))
    return x_BTHWC + h
