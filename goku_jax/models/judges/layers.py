"""What Inception-v3 and I3D are built of."""

import functools
import operator

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
    if set(self.window) == {1} and self.stride == 1:
      matrix = kernel.reshape(kernel.shape[-2:])
      return jnp.dot(x, matrix, precision="highest")
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


def max_pool(x, window, strides=None, padding="VALID"):
  """`nn.max_pool`, in the form that each backend computes fastest."""
  form = dict(strides=strides or (1,) * len(window), padding=padding)
  slices = functools.partial(
    _pool_sides, window=window, join=jnp.maximum, beyond=-jnp.inf, **form
  )
  default = functools.partial(nn.max_pool, window_shape=window, **form)
  return jax.lax.platform_dependent(x, cpu=slices, default=default)


def mean_pool(x, window):
  """Means of what lies inside of windows around each position, as fast."""
  form = dict(padding="SAME")

  def slices(x):
    ones = jnp.ones_like(x, shape=(1, *x.shape[1:-1], 1))
    strides = (1,) * len(window)
    add = functools.partial(
      _pool_sides, window=window, strides=strides, join=operator.add, **form
    )
    return add(x) / add(ones)

  default = functools.partial(
    nn.avg_pool, window_shape=window, count_include_pad=False, **form
  )
  return jax.lax.platform_dependent(x, cpu=slices, default=default)


def _pool_sides(x, window, strides, padding, join, beyond=0.0):
  """Shifted slices joined, along one side after the other.

  XLA's CPU backend takes four to eight times as long over a window at once.
  """
  pads = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
  sides = zip(window, strides, pads, strict=True)
  for axis, (size, stride, pad) in enumerate(sides, 1):
    around = [(0, 0)] * x.ndim
    around[axis] = pad
    x = jnp.pad(x, around, constant_values=beyond)
    end = x.shape[axis] - size + 1
    parts = (
      jax.lax.slice_in_dim(x, i, end + i, stride, axis) for i in range(size)
    )
    x = functools.reduce(join, parts)
  return x
