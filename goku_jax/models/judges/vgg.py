"""VGG16's features (arXiv:1409.1556), as LPIPS reads them.

Letters: N images, H W height and width, C channels.
"""

import flax.linen as nn
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
        x = nn.relu(conv(x))
        number += 1
      features.append(x)
    return features
