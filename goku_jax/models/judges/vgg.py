"""VGG16's features (arXiv:1409.1556), as LPIPS reads them.

Letters: N images, H W height and width, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

WIDTHS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)


class VGG16(nn.Module):
  """The last features of each of the five levels, sides halved between them."""

  @nn.compact
  def __call__(
    self, images_NHWC: Float[Array, "N H W 3"]
  ) -> list[Float[Array, "N _ _ _"]]:
    """Takes images in ImageNet's own units, of 16 pixels a side or more."""
    x, features, number = images_NHWC, [], 0
    for level, widths in enumerate(WIDTHS):
      if level:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for width in widths:
        # Accelerators would round to fewer bits than published figures have.
        conv = nn.Conv(
          width, (3, 3), precision="highest", name=f"conv_{number}"
        )
        x = nn.relu(_small(conv, x))
        number += 1
      features.append(x)
    return features


def _small(conv, x_NHWC):
  """The convolution, of maps that have fewer pixels than its window too.

  XLA would take such a map for the window, which on CPUs is up to 50 times as
  slow. Zeros behind the map are what the convolution sees there anyway.
  """
  H, W = x_NHWC.shape[1:3]
  if H * W == 1 or H * W >= 9:
    return conv(x_NHWC)
  sides = (0, 0), (0, max(3 - H, 0)), (0, max(3 - W, 0)), (0, 0)
  # Without the barrier XLA would undo it.
  return conv(jax.lax.optimization_barrier(jnp.pad(x_NHWC, sides)))[:, :H, :W]
