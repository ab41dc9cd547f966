"""Features of images by VGG16, for `vgg16_frechet_distance`.

The last features of the fifth level (conv5_3 after its ReLU), averaged over
pixels, with torchvision's weights: those that `convert --format=lpips` wrote.
Images are not resized. A distance in these features is no FID, whose network
is another, and is never called so.

Letters: N images, H W height and width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import trees, weights
from goku_jax.models.judges.lpips import MIN_SIDE, abstract_params
from goku_jax.models.judges.vgg import VGG16, WIDTHS
from goku_jax.typing import UserError

NAME = "vgg16_frechet_distance"
WIDTH = WIDTHS[-1][-1]  # numbers in a feature
ROWS = 32  # images at once
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def features(folder) -> Callable[[np.ndarray], np.ndarray]:
  """Features float32 [N, 512] of uint8 images [N, H, W, 3], as a function.

  Images have 16 pixels a side or more; of each size the first call compiles.

  Raises:
    UserError: the folder is damaged, or holds the weights of something else;
      by the function: images of another dtype or shape.
  """
  params, _ = weights.load(folder)
  wanted = trees.shapes(abstract_params())
  trees.check_shapes(trees.shapes(params), wanted, f"the weights in {folder}")
  params = jax.device_put(params["vgg"])

  @jax.jit
  def apply(params, images_NHWC):
    units = (images_NHWC.astype(jnp.float32) / 255 - _MEAN) / _STD
    return VGG16().apply({"params": params}, units)[-1].mean((1, 2))

  def features_of(images_NHWC):
    _check(images_NHWC)
    found_NC = np.empty((len(images_NHWC), WIDTH), np.float32)
    rows = min(ROWS, len(images_NHWC))
    for start in range(0, len(images_NHWC), ROWS):
      batch = images_NHWC[start : start + ROWS]
      # In batches of one size nothing compiles twice.
      rest = [(0, rows - len(batch)), (0, 0), (0, 0), (0, 0)]
      made = apply(params, np.pad(batch, rest))
      found_NC[start : start + ROWS] = made[: len(batch)]
    return found_NC

  return features_of


def _check(images):
  shape = images.shape
  if len(shape) != 4 or shape[-1] != 3 or min(shape[1:3]) < MIN_SIDE:
    raise UserError(
      f"images are [N, H, W, 3] of {MIN_SIDE} pixels a side or more, not"
      f" {list(shape)}"
    )
  if images.dtype != np.uint8:
    raise UserError(f"images have pixels of {images.dtype}, not uint8")
