"""Resizing as published metrics do it: each figure belongs to one rule.

All are bilinear and none averages over what it leaves out, which
`jax.image.resize` does by default. From 256 to 299 pixels a side the first two
differ by up to 32 grey levels on noise, and FID by a percent on images.

Letters: H W height and width, C channels; h w after resizing.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from goku_jax.typing import UserError


def resize(
  images_HWC: Num[Array | np.ndarray, "*N H W C"], side: int, rule: str
) -> Num[Array, "*N h w C"]:
  """Square images in float32, of any number of dims in front.

  Args:
    images_HWC: of any range, which is kept.
    side: height and width of what comes out, in pixels.
    rule: a key of RULES.
  """
  if rule not in RULES:
    raise UserError(f"resize={rule} is not one of {', '.join(RULES)}")
  return RULES[rule](jnp.asarray(images_HWC, jnp.float32), side)


def tf1(images_HWC, side):
  """TensorFlow 1's: pixels are points, the first of both sizes the same."""
  at = lambda inside: _positions(inside, side, offset=0.0)
  return _sample(images_HWC, at)


def half_pixel(images_HWC, side):
  """torch's: pixels are squares, and the corners of both sizes the same."""
  at = lambda inside: _positions(inside, side, offset=0.5)
  return _sample(images_HWC, at)


def half_pixel_crop(images_HWC, side):
  """torch's, the shorter side to `side`, and the middle of the longer one."""
  short = min(images_HWC.shape[-3:-1])

  def at(inside):
    length = side if inside == short else math.ceil(inside * (side / short))
    start = (length - side) // 2
    return _positions(inside, length, offset=0.5)[start : start + side]

  return _sample(images_HWC, at)


def corners(images_HWC, side):
  """Chainer's: pixels are points, the corners of both sizes the same."""
  at = lambda inside: np.linspace(0, inside - 1, side, dtype=np.float32)
  return _sample(images_HWC, at)


RULES = {
  "tf1": tf1,
  "half_pixel": half_pixel,
  "half_pixel_crop": half_pixel_crop,
  "corners": corners,
}


def _positions(inside, outside, offset):
  """Where each pixel that comes out lies, rounded as theirs are."""
  scale = float(np.float32(inside) / np.float32(outside))
  at = (np.arange(outside) + offset) * scale - offset
  return np.maximum(at, 0).astype(np.float32)


def _sample(images_HWC, at_fn):
  x = images_HWC
  for axis in (-2, -3):  # rows last, as theirs
    inside = x.shape[axis]
    at = at_fn(inside)
    before = np.floor(at).astype(int)
    after = np.minimum(before + 1, inside - 1)
    weight = (at - before).astype(np.float32)
    weight = weight.reshape(-1, *(1,) * (-axis - 1))
    low, high = (jnp.take(x, i, axis, mode="clip") for i in (before, after))
    x = low + (high - low) * weight
  return x
