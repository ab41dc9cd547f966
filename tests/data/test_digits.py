"""Digits: the label says what the pixels do; no split leaks."""

import itertools

import numpy as np
import pytest

from goku_jax.data import digits, hashing, tokenize
from goku_jax.typing import UserError


def velocity(video):
  """Least-squares motion (y, x) of the centroid, pixels a frame."""
  grey = video[..., 0].astype(float)
  mass = grey.sum((1, 2))
  place = np.arange(grey.shape[1])
  y = (grey.sum(2) * place).sum(1) / mass
  x = (grey.sum(1) * place).sum(1) / mass
  t = np.arange(len(grey)) - (len(grey) - 1) / 2
  return np.array([(y * t).sum(), (x * t).sum()]) / (t**2).sum()


def test_a_sample_is_a_function_of_seed_split_and_index():
  one, two = digits.Digits(), digits.Digits(num_samples=40)
  for i in (0, 1, 38, 39):
    np.testing.assert_array_equal(one[i]["video"], two[i]["video"])
    assert one[i]["caption"] == two[i]["caption"]
  other = digits.Digits(seed=1)
  assert any(other[i]["glyph"] != one[i]["glyph"] for i in range(8))


def test_numbers_are_the_same_for_ever():
  assert int(hashing.bits(0)[0]) == 0xE220A8397B1DCDAF  # the reference's first
  sample = digits.Digits()[1]
  frozen = (sample["caption"], sample["glyph"])
  assert frozen == ("the digit eight moves up slowly", 170)


@pytest.mark.parametrize(("num_frames", "canvas"), [(17, 32), (5, 16), (9, 40)])
def test_the_rendered_motion_is_the_label(num_frames, canvas):
  data = digits.Digits(num_frames=num_frames, canvas=canvas)
  for i in range(1, 201, 2):
    sample = data[i]
    video = sample["video"]
    assert video.shape == (num_frames, canvas, canvas, 3)
    assert video.dtype == np.uint8
    want = digits.STEPS[sample["direction"]] * sample["speed"]
    np.testing.assert_allclose(velocity(video), want, atol=0.02)
    ink = video.astype(float).sum((1, 2, 3))  # nothing leaves the canvas
    np.testing.assert_allclose(ink, ink[0], rtol=0.02)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_images_is_exact_over_any_window(share):
  data = digits.Digits(image_share=share, num_samples=1000)
  is_image = data.sizes()[:, 0] == 1
  for n in (10, 30, 100):
    counts = np.convolve(is_image, np.ones(n), "valid")
    assert np.abs(counts - share * n).max() < 1
  assert len(data[0]["video"]) == (1 if share else 17)


def test_every_other_sample_is_an_image():
  frames = digits.Digits(num_samples=100).sizes()[:, 0]
  np.testing.assert_array_equal(frames[::2], 1)
  np.testing.assert_array_equal(frames[1::2], 17)


def test_glyphs_of_the_splits_are_disjoint_and_stratified():
  _, labels, _ = digits.load_glyphs()
  train, test = digits.glyph_indices("train"), digits.glyph_indices("test")
  assert len(train) + len(test) == len(set(train) | set(test)) == 1797
  for digit in range(10):
    share = (labels[test] == digit).sum() / (labels == digit).sum()
    assert share == pytest.approx(0.2, abs=0.01)
  for split, own in (("train", train), ("test", test)):
    seen = digits.Digits(split).labels(np.arange(20_000))["glyph"]
    assert set(seen) == set(own)


def test_held_out_pairs_never_move_in_training():
  assert {k for _, k in digits.HELD_OUT} == set(range(7))
  assert len({d for d, _ in digits.HELD_OUT}) == len(digits.HELD_OUT) == 7

  def pairs(**kwargs):
    label = digits.Digits(**kwargs).labels(np.arange(20_000))
    seen = set(zip(label["digit"], label["direction"], strict=True))
    return {pair for pair in seen if pair[1] >= 0}

  everything = set(itertools.product(range(10), range(7)))
  assert pairs(split="train") == everything - digits.HELD_OUT
  assert pairs(split="test", pairs="held_out") == digits.HELD_OUT
  assert pairs(split="test", pairs="all") == everything


def test_captions_say_what_is_there():
  assert digits.prompt(5) == "a picture of the digit five"
  assert digits.prompt(5, 0) == "the digit five moves left"
  assert digits.prompt(5, 4, 0.5) == "the digit five moves up left slowly"
  assert digits.prompt(5, 1, 1.0) == "the digit five moves right quickly"
  assert digits.prompt(5, digits.STILL) == "the digit five stays still"
  data = digits.Digits()
  label, sizes = data.labels(np.arange(4000)), data.sizes()
  moves = label["speed"] > 0
  assert label["says_speed"][moves].mean() == pytest.approx(2 / 3, abs=0.03)
  for i in range(300):
    sample = data[i]
    assert len(tokenize.encode(sample["caption"])) == sizes[i, 3]
    spoken = digits.prompt(
      sample["digit"], sample["direction"], sample["speed"] or None
    )
    assert spoken.startswith(sample["caption"])


@pytest.mark.parametrize(
  ("kwargs", "says"),
  [
    ({"canvas": 16}, "set 32 or more, or num_frames=9 or less"),
    ({"canvas": 8, "num_frames": 1}, "needs a canvas of 16"),
    ({"num_frames": 0}, "num_frames=0 is not 4k.1: the nearest are 1 and 5"),
    ({"num_frames": 16}, "num_frames=16 .* nearest are 13 and 17"),
    ({"canvas": 22}, "set 32 or more, or num_frames=9 or less"),
    ({"num_samples": 0}, "num_samples=0: set 1 or more"),
    ({"split": "val"}, "is not one of train, test"),
    ({"pairs": "all"}, "set split=test"),
    ({"image_share": 1.5}, "between 0 and 1"),
  ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(kwargs, says):
  with pytest.raises(UserError, match=says):
    digits.Digits(**kwargs)


def test_random_access_ends():
  data = digits.Digits(num_samples=3)
  assert len(list(data)) == len(data) == 3
  with pytest.raises(IndexError):
    data[3]
