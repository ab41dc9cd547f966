"""The 3x3x3 convolution, in the form that each backend computes fastest.

Letters: B clips, T H W frames, height, width, C D channels in and out.
"""

import jax
from jaxtyping import Array, Float


def conv3d(
  x_BTHWC: Float[Array, "B T H W C"], kernel: Float[Array, "3 3 3 C D"]
) -> Float[Array, "B t H W D"]:
  """Two frames fewer than it is given; zeros beyond the sides."""
  return jax.lax.platform_dependent(
    x_BTHWC, kernel, cpu=sum_of_planes, default=volume
  )


def volume(x_BTHWC, kernel):
  """XLA's own, which TPUs and GPUs have kernels for."""
  return jax.lax.conv_general_dilated(
    x_BTHWC,
    kernel,
    (1, 1, 1),
    ((0, 0), (1, 1), (1, 1)),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def sum_of_planes(x_BTHWC, kernel):
  """The sum of three 2-D convolutions, one for each tap in time.

  XLA's CPU backend computes 3-D ones by a slow path of its own: this is 1.5
  to 2.4 times faster at 64 to 256 channels (`bench --suite=vae`), and needs
  no copy of three frames' channels side by side.
  """
  B, T, H, W, C = x_BTHWC.shape

  def tap(i):
    planes = x_BTHWC[:, i : i + T - 2].reshape(-1, H, W, C)
    return jax.lax.conv_general_dilated(
      planes,
      kernel[i],
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

  return (tap(0) + tap(1) + tap(2)).reshape(B, T - 2, H, W, kernel.shape[-1])
