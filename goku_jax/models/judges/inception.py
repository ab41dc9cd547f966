"""Inception-v3 with the weights of FID, and features as its evaluators read it.

Szegedy et al. 2015 (arXiv:1512.00567) as TensorFlow published it in 2015, which
is not torchvision's network: averages leave out what lies beyond the sides,
the last block pools by maximum, and there are 1008 classes. Modules have the
names of the published files.

Letters: N images, H W height and width, C channels.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models.judges.layers import ConvUnit, max_pool, mean_pool

ORIGIN = (
  "pt_inception-2015-12-05-6726825d.pth of the release fid_weights of "
  "github.com/mseitzer/pytorch-fid, or "
  "weights-inception-2015-12-05-6726825d.pth of the release v0.2.0 of "
  "github.com/toshas/torch-fidelity: the same tensors; the sha256 begins with "
  "6726825d"
)
SIDE = 299  # pixels
WIDTHS = {"pool3": 2048, "spatial": 17 * 17 * 7}
CLASSES = 1008
SPATIAL_CHANNELS = 7
BN_EPS = 1e-3
Unit = functools.partial(ConvUnit, bn_eps=BN_EPS)
_average = functools.partial(mean_pool, window=(3, 3))
_max_pool = functools.partial(max_pool, window=(3, 3), strides=(2, 2))
_max_pool_same = functools.partial(max_pool, window=(3, 3), padding="SAME")


class Features(NamedTuple):
  """What FID, sFID and the Inception score read."""

  pool3: Array  # [N, 2048]
  spatial: Array  # [N, 2023]: 17 rows of 17 columns of 7 channels
  logits: Array  # [N, 1008], without the bias, which no score adds


class Inception(nn.Module):
  """Features of images scaled to (x - 128) / 128."""

  @nn.compact
  def __call__(self, images_NHWC: Float[Array, "N 299 299 3"]) -> Features:
    x = images_NHWC
    valid = dict(padding="VALID")
    x = Unit(32, (3, 3), stride=2, **valid, name="Conv2d_1a_3x3")(x)
    x = Unit(32, (3, 3), **valid, name="Conv2d_2a_3x3")(x)
    x = Unit(64, (3, 3), name="Conv2d_2b_3x3")(x)
    x = _max_pool(x)
    x = Unit(80, (1, 1), name="Conv2d_3b_1x1")(x)
    x = Unit(192, (3, 3), **valid, name="Conv2d_4a_3x3")(x)
    x = _max_pool(x)
    for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
      x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
    x = BlockB(name="Mixed_6a")(x)
    for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
      x = BlockC(width, name=f"Mixed_6{letter}")(x)
      if letter == "d":  # TensorFlow's mixed_6
        spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(_average, name="Mixed_7b")(x)
    x = BlockE(_max_pool_same, name="Mixed_7c")(x)
    pool3 = x.mean((1, 2))
    fc = nn.Dense(CLASSES, use_bias=False, precision="highest", name="fc")
    return Features(pool3, spatial, fc(pool3))


class BlockA(nn.Module):
  """Windows of up to 5x5 at 35x35 positions."""

  pooled: int

  @nn.compact
  def __call__(self, x: Float[Array, "N H W _"]) -> Float[Array, "N H W _"]:
    one = Unit(64, (1, 1), name="branch1x1")(x)
    five = Unit(48, (1, 1), name="branch5x5_1")(x)
    five = Unit(64, (5, 5), name="branch5x5_2")(five)
    three = Unit(64, (1, 1), name="branch3x3dbl_1")(x)
    three = Unit(96, (3, 3), name="branch3x3dbl_2")(three)
    three = Unit(96, (3, 3), name="branch3x3dbl_3")(three)
    pool = Unit(self.pooled, (1, 1), name="branch_pool")(_average(x))
    return jnp.concatenate([one, five, three, pool], -1)


class BlockB(nn.Module):
  """From 35x35 positions to 17x17."""

  @nn.compact
  def __call__(self, x: Float[Array, "N _ _ _"]) -> Float[Array, "N _ _ _"]:
    last = dict(stride=2, padding="VALID")
    three = Unit(384, (3, 3), **last, name="branch3x3")(x)
    double = Unit(64, (1, 1), name="branch3x3dbl_1")(x)
    double = Unit(96, (3, 3), name="branch3x3dbl_2")(double)
    double = Unit(96, (3, 3), **last, name="branch3x3dbl_3")(double)
    return jnp.concatenate([three, double, _max_pool(x)], -1)


class BlockC(nn.Module):
  """Windows of 7x7 as rows and columns, at 17x17 positions."""

  width: int

  @nn.compact
  def __call__(self, x: Float[Array, "N H W _"]) -> Float[Array, "N H W _"]:
    row, column = (1, 7), (7, 1)
    one = Unit(192, (1, 1), name="branch1x1")(x)
    seven = Unit(self.width, (1, 1), name="branch7x7_1")(x)
    seven = Unit(self.width, row, name="branch7x7_2")(seven)
    seven = Unit(192, column, name="branch7x7_3")(seven)
    double = Unit(self.width, (1, 1), name="branch7x7dbl_1")(x)
    for i, window in enumerate((column, row, column)):
      name = f"branch7x7dbl_{i + 2}"
      double = Unit(self.width, window, name=name)(double)
    double = Unit(192, row, name="branch7x7dbl_5")(double)
    pool = Unit(192, (1, 1), name="branch_pool")(_average(x))
    return jnp.concatenate([one, seven, double, pool], -1)


class BlockD(nn.Module):
  """From 17x17 positions to 8x8."""

  @nn.compact
  def __call__(self, x: Float[Array, "N _ _ _"]) -> Float[Array, "N _ _ _"]:
    last = dict(stride=2, padding="VALID")
    three = Unit(192, (1, 1), name="branch3x3_1")(x)
    three = Unit(320, (3, 3), **last, name="branch3x3_2")(three)
    seven = Unit(192, (1, 1), name="branch7x7x3_1")(x)
    seven = Unit(192, (1, 7), name="branch7x7x3_2")(seven)
    seven = Unit(192, (7, 1), name="branch7x7x3_3")(seven)
    seven = Unit(192, (3, 3), **last, name="branch7x7x3_4")(seven)
    return jnp.concatenate([three, seven, _max_pool(x)], -1)


class BlockE(nn.Module):
  """Rows and columns side by side, at 8x8 positions."""

  pool_fn: Callable

  @nn.compact
  def __call__(self, x: Float[Array, "N H W _"]) -> Float[Array, "N H W _"]:
    one = Unit(320, (1, 1), name="branch1x1")(x)
    three = Unit(384, (1, 1), name="branch3x3_1")(x)
    double = Unit(448, (1, 1), name="branch3x3dbl_1")(x)
    double = Unit(384, (3, 3), name="branch3x3dbl_2")(double)
    sides = []
    for stem, y in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
      sides.append(Unit(384, (1, 3), name=f"{stem}a")(y))
      sides.append(Unit(384, (3, 1), name=f"{stem}b")(y))
    pool = Unit(192, (1, 1), name="branch_pool")(self.pool_fn(x))
    return jnp.concatenate([one, *sides, pool], -1)


@functools.cache
def abstract_params():
  """Shapes and dtypes of the parameters."""
  images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
  return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
