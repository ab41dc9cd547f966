"""Convolutions over time, in the form that each backend computes fastest.

Letters: B clips, T H W frames, height, width, C D channels in and out; t h w
after a stride.
"""

import functools
import operator

import jax
from jaxtyping import Array, Float

SAME = ((1, 1), (1, 1))  # zeros before and after height and width


def conv3d(
  x_BTHWC: Float[Array, "B T H W C"],
  kernel: Float[Array, "_ _ _ C D"],
  stride: int = 1,
  sides=SAME,
  precision: str | None = None,
) -> Float[Array, "B t h w D"]:
  """Every `stride`th frame, row and column of a convolution.

  Zeros stand beyond the sides, and no frame before the first or after the
  last: without a stride a kernel of three leaves two fewer than it is given.
  """
  form = dict(stride=stride, sides=sides, precision=precision)
  return jax.lax.platform_dependent(
    x_BTHWC,
    kernel,
    cpu=functools.partial(sum_of_planes, **form),
    default=functools.partial(volume, **form),
  )


def volume(x_BTHWC, kernel, stride=1, sides=SAME, precision=None):
  """XLA's own, which TPUs and GPUs have kernels for."""
  return jax.lax.conv_general_dilated(
    x_BTHWC,
    kernel,
    (stride,) * 3,
    ((0, 0), *sides),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    precision=precision,
  )


def sum_of_planes(x_BTHWC, kernel, stride=1, sides=SAME, precision=None):
  """The sum of 2-D convolutions, one for each tap in time.

  XLA's CPU backend computes 3-D ones by a slow path of its own, and their
  gradients with a stride by a very slow one (`bench --suite=conv`). Nor are
  the frames' channels copied side by side.
  """
  B, T, H, W, C = x_BTHWC.shape
  taps = len(kernel)

  def tap(i):
    planes = x_BTHWC[:, i : T - taps + 1 + i : stride]
    y = jax.lax.conv_general_dilated(
      planes.reshape(-1, H, W, C),
      kernel[i],
      (stride, stride),
      sides,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=precision,
    )
    return y.reshape(B, planes.shape[1], *y.shape[1:])

  return functools.reduce(operator.add, map(tap, range(taps)))
