"""Clips are fitted without a pixel more or less than was asked for."""

import numpy as np
import pytest

from goku_jax.data import transforms
from goku_jax.typing import UserError


def clip(T, H, W):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (T, H, W, 3), np.uint8)


def cover(video, size):
  return transforms.crop_centre(
    transforms.resize_to_cover(video, size), size, "x"
  )


def test_uint8_is_taken_as_it_is():
  video = clip(2, 3, 4)
  assert transforms.check_pixels(video, "x") is video


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_pixels_are_those_of_the_model(dtype):
  video = clip(2, 3, 4)
  pixels = (video / 127.5 - 1).astype(dtype)
  np.testing.assert_array_equal(transforms.check_pixels(pixels, "x"), video)


@pytest.mark.parametrize(
  ("video", "says"),
  [
    (np.zeros((1, 2, 2, 3), np.uint16), "uint8 or float in .*, not uint16"),
    (np.zeros((1, 2, 2, 3), bool), "not bool"),
    (np.full((1, 2, 2, 3), 200.0), "float64 pixels from 200 to 200"),
    (np.full((1, 2, 2, 3), np.inf), "from inf to inf"),
    (np.full((1, 2, 2, 3), np.nan, np.float32), "pixels that are NaN"),
    (np.zeros((2, 2, 3), np.uint8), r"not \[2, 2, 3\]"),
    (np.zeros((1, 2, 2, 4), np.uint8), r"not \[1, 2, 2, 4\]"),
    (np.zeros((0, 2, 2, 3), np.uint8), r"not \[0, 2, 2, 3\]"),
  ],
)
def test_other_pixels_are_refused_by_the_name_of_their_file(video, says):
  with pytest.raises(UserError, match=says) as error:
    transforms.check_pixels(video, "a/clip.npz")
  assert str(error.value).startswith("a/clip.npz: ")


@pytest.mark.parametrize("size", [(6, 6), (8, 4), (3, 9), (1, 1), (40, 30)])
@pytest.mark.parametrize("sides", [(12, 20), (20, 12), (7, 7), (1, 1)])
def test_a_crop_has_the_size_asked_for(size, sides):
  fitted = cover(clip(2, *sides), size)
  assert fitted.shape == (2, *size, 3)


def test_a_clip_of_the_size_is_left_alone():
  video = clip(2, 6, 8)
  np.testing.assert_array_equal(cover(video, (6, 8)), video)


def test_the_centre_stays_when_no_side_is_scaled():
  video = clip(2, 6, 11)
  np.testing.assert_array_equal(cover(video, (6, 6)), video[:, :, 2:8])
  with pytest.raises(UserError, match="x: frames of 6x11 have no centre of 7x"):
    transforms.crop_centre(video, (7, 6), "x")


def test_scaling_down_is_antialiased():
  stripes = np.zeros((1, 64, 64, 3), np.uint8)
  stripes[:, :, ::2] = 255
  fitted = transforms.resize_to_cover(stripes, (16, 16))[:, :, 2:-2]
  assert np.abs(fitted - 127.5).max() < 16


@pytest.mark.parametrize(
  ("frames", "kept"), [(1, 1), (2, 1), (4, 1), (5, 5), (6, 5), (18, 17)]
)
def test_frames_beyond_4k_plus_1_are_trimmed_or_refused(frames, kept):
  video = clip(frames, 2, 2)
  trimmed = transforms.trim_frames(video, 4, "trim", "x")
  np.testing.assert_array_equal(trimmed, video[:kept])
  if frames == kept:
    assert len(transforms.trim_frames(video, 4, "refuse", "x")) == kept
  else:
    with pytest.raises(UserError, match=f"x: a clip of {frames} frames is not"):
      transforms.trim_frames(video, 4, "refuse", "x")


@pytest.mark.parametrize("sides", [(1, 1), (8, 8), (9, 15), (7, 16)])
def test_padding_repeats_the_edge_and_is_cropped_back(sides):
  video = clip(3, *sides)
  padded = transforms.pad_sides(video, (8, 8))
  H, W = sides
  assert padded.shape[1] % 8 == padded.shape[2] % 8 == 0
  assert max(padded.shape[1] - H, padded.shape[2] - W) < 8
  np.testing.assert_array_equal(padded[:, :H, :W], video)
  assert (padded[:, H:, :W] == video[:, -1:]).all()
  assert (padded[:, :, W:] == padded[:, :, W - 1 : W]).all()
