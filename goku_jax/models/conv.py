"""The 3x3x3 convolution, in the form that each backend computes fastest.

Letters: B clips, T H W frames, height, width, C D channels in and out.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conv3d(
  x_BTHWC: Float[Array, "B T H W C"], kernel: Float[Array, "3 3 3 C D"]
) -> Float[Array, "B t H W D"]:
  """Two frames fewer than it is given; zeros beyond the sides."""
  return jax.lax.platform_dependent(
    x_BTHWC, kernel, cpu=_planes, default=_volume
  )


def _volume(x_BTHWC, kernel):
  return jax.lax.conv_general_dilated(
    x_BTHWC,
    kernel,
    (1, 1, 1),
    ((0, 0), (1, 1), (1, 1)),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def _planes(x_BTHWC, kernel):
  """One 2-D convolution over the channels of three neighbouring frames.

  The same sum, 2 to 5 times faster than a 3-D convolution of XLA's on a CPU.
  """
  T = x_BTHWC.shape[1] - 2
  x = jnp.concatenate([x_BTHWC[:, i : i + T] for i in range(3)], -1)
  y = jax.lax.conv_general_dilated(
    x.reshape(-1, *x.shape[2:]),
    jnp.concatenate(list(kernel), axis=-2),  # [3, 3, 3 C, D]
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y.reshape(*x.shape[:-1], -1)
