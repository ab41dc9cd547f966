"""Resized pixels are those of the published rules."""

import jax
import numpy as np
import pytest

from goku_jax.eval.resize import RULES, resize
from goku_jax.typing import UserError

# Height, width and side: larger, smaller, and equal.
SIZES = [(8, 8, 13), (256, 256, 299), (37, 53, 16), (300, 200, 224), (9, 9, 9)]


def levels(H, W):
  shape = (2, H, W, 3)
  return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def matrix(inside, outside, offset):
  """What each pixel that comes out has of each that went in."""
  weights = np.zeros((outside, inside))
  for i in range(outside):
    at = max((i + offset) * inside / outside - offset, 0)
    weights[i, int(at)] += 1 - at % 1
    weights[i, min(int(at) + 1, inside - 1)] += at % 1
  return weights


def by_formula(image_HWC, side, offset):
  """In float64."""
  rows, columns = (matrix(n, side, offset) for n in image_HWC.shape[:2])
  return np.einsum("hH,wW,HWC->hwC", rows, columns, image_HWC, optimize=True)


@pytest.mark.parametrize(("rule", "offset"), [("tf1", 0), ("half_pixel", 0.5)])
@pytest.mark.parametrize(("H", "W", "side"), SIZES)
def test_every_pixel_is_by_the_formula(H, W, side, rule, offset):
  images = levels(H, W)[:1]
  wanted = by_formula(images[0], side, offset)
  # Positions are in float32, as where the rules come from.
  np.testing.assert_allclose(resize(images, side, rule)[0], wanted, atol=0.02)


def test_the_rules_differ_as_published():
  images = levels(256, 256)
  one, two = (resize(images, 299, rule) for rule in ("tf1", "half_pixel"))
  assert 20 < np.abs(one - two).max() < 60


def test_tensorflow_keeps_the_first_pixel_and_torch_the_mean_of_a_ramp():
  ramp = np.broadcast_to(np.arange(8.0)[:, None, None], (8, 8, 1))
  np.testing.assert_allclose(resize(ramp, 4, "tf1")[:, 0, 0], [0, 2, 4, 6])
  got = resize(ramp, 4, "half_pixel")[:, 0, 0]
  np.testing.assert_allclose(got, [0.5, 2.5, 4.5, 6.5])


@pytest.mark.parametrize(
  ("H", "W", "kept"), [(8, 14, np.s_[:, 3:11]), (14, 8, np.s_[3:11])]
)
def test_a_crop_keeps_the_middle(H, W, kept):
  image = levels(H, W)[0]
  got = resize(image, 8, "half_pixel_crop")
  np.testing.assert_array_equal(got, image[kept])


@pytest.mark.parametrize("rule", RULES)
def test_frames_are_resized_each_by_itself_and_under_jit(rule):
  video = np.stack([levels(12, 20), levels(12, 20)[::-1]])
  got = jax.jit(resize, static_argnums=(1, 2))(video, 7, rule)
  assert got.shape == (2, 2, 7, 7, 3)
  one = resize(video[1, 0], 7, rule)
  np.testing.assert_allclose(got[1, 0], one, atol=1e-4)


def test_an_unknown_rule_is_refused():
  with pytest.raises(UserError, match="resize=cubic is not one of tf1, half_p"):
    resize(levels(4, 4), 2, "cubic")


@pytest.mark.parity
@pytest.mark.parametrize(("H", "W", "side"), [*SIZES, (240, 360, 224)])
def test_torch_gives_the_same(H, W, side):
  import torch
  from torch.nn import functional as F

  images = levels(H, W)
  x = torch.tensor(images).permute(0, 3, 1, 2).float()
  bilinear = dict(mode="bilinear", align_corners=False)
  wanted = F.interpolate(x, (side, side), **bilinear).permute(0, 2, 3, 1)
  got = resize(images, side, "half_pixel")
  np.testing.assert_allclose(got, wanted, atol=2e-4)
  # Of the crop, as VideoGPT computes it.
  long = int(np.ceil(max(H, W) * (side / min(H, W))))
  size = (side, long) if H < W else (long, side)
  whole = F.interpolate(x, size, **bilinear).permute(0, 2, 3, 1)
  i, j = ((n - side) // 2 for n in size)
  got = resize(images, side, "half_pixel_crop")
  wanted = whole[:, i : i + side, j : j + side]
  np.testing.assert_allclose(got, wanted, atol=2e-4)
