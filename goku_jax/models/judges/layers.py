"""What Inception-v3 and I3D are built of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models import conv


class ConvUnit(nn.Module):
  """A convolution without bias, batch norm by its stored statistics, ReLU.

  Over height and width, or over time as well. Published figures come from
  float32: accelerators would round to fewer bits.
  """

  width: int
  window: tuple[int, ...]
  bn_eps: float
  stride: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: Float[Array, "N ... C"]) -> Float[Array, "N ... D"]:
    shape = (*self.window, x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
    scale, var = (self.param(k, ones, shape[-1:]) for k in ("scale", "var"))
    bias, mean = (self.param(k, zeros, shape[-1:]) for k in ("bias", "mean"))
    factor = scale / jnp.sqrt(var + self.bn_eps)
    y = self._convolve(x, kernel * factor)
    return nn.relu(y + (bias - mean * factor))

  def _convolve(self, x, kernel):
    strides = (self.stride,) * len(self.window)
    if len(strides) == 2:
      return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        self.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
      )
    inside = x.shape[1:-1]
    time, *sides = jax.lax.padtype_to_pads(
      inside, self.window, strides, self.padding
    )
    x = jnp.pad(x, ((0, 0), time, (0, 0), (0, 0), (0, 0)))
    return conv.conv3d(x, kernel, self.stride, sides, precision="highest")
