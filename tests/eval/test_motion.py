"""Closed-form figures of videos: each failure moves the figure meant for it."""

import json

import numpy as np
import pytest

from goku_jax.data import digits
from goku_jax.eval import motion

NUM_VIDEOS = 140
# How little a figure moves where a failure is not its own.
QUIET = {
  "direction_accuracy": 0.02,
  "speed_mae": 0.05,
  "trajectory_error": 0.1,
  "mass_cv": 0.02,
  "subject_consistency": 0.02,
  "temporal_flickering": 0.03,
  "dynamic_degree": 0.02,
}


@pytest.fixture(scope="module")
def real():
  clips = digits.Digits("test", pairs="all", image_share=0.0, seed=3)
  samples = [clips[i] for i in range(NUM_VIDEOS)]
  videos = np.stack([sample["video"] for sample in samples])
  asked = [
    np.array([sample[key] for sample in samples])
    for key in ("direction", "speed")
  ]
  return videos, *asked


def figures(videos, *asked):
  seen = motion.read(videos, motion.crop_side(videos.shape[2]))
  result = motion.score(seen, *asked)
  json.dumps(result, allow_nan=False)
  return result


@pytest.fixture(scope="module")
def ceiling(real):
  return figures(*real)


def test_real_clips_are_the_ceiling(ceiling, real):
  _, direction, _ = real
  assert ceiling["num_videos"] == NUM_VIDEOS
  assert ceiling["direction_accuracy"] == 1
  assert ceiling["readable"] == 1
  assert ceiling["speed_mae"] < 0.01
  assert ceiling["trajectory_error"] < 0.05
  assert ceiling["mass_cv"] < 0.05
  assert ceiling["subject_consistency"] > 0.95
  assert ceiling["temporal_flickering"] > 0.97
  moving = np.mean(direction != digits.STILL)
  assert ceiling["dynamic_degree"] == pytest.approx(moving)


def frozen(rng, videos):
  return np.repeat(videos[:, :1], videos.shape[1], axis=1)


def jittered(rng, videos):
  moved = np.empty_like(videos)
  for n, video in enumerate(videos):
    for t, frame in enumerate(video):
      moved[n, t] = np.roll(frame, rng.integers(-1, 2, 2), (0, 1))
  return moved


def flickering(rng, videos):
  N, T = videos.shape[:2]
  gain = 0.7 + 0.3 * rng.random((N, T, 1, 1, 1))
  return (videos * gain).astype(np.uint8)


def switched(rng, videos):
  """Other glyphs from the middle on, on the same ways."""
  clips = digits.Digits("test", pairs="all", image_share=0.0, seed=3)
  label = clips.labels(np.arange(len(videos)))
  glyphs = digits.load_glyphs(16)[0][np.roll(label["glyph"], 1)]
  step = digits.STEPS[label["direction"]] * label["speed"][:, None]
  ways = zip(glyphs, label["start"], step, strict=True)
  other = [digits.render(*way, videos.shape[1], 32) for way in ways]
  return np.concatenate([videos[:, :8], np.stack(other)[:, 8:]], 1)


# How a clip is spoiled, what moves by how much at least, and what follows.
FAILURES = {
  "reversed": (lambda rng, v: v[:, ::-1], {"direction_accuracy": -0.8}, ()),
  "of another clip": (
    lambda rng, v: np.roll(v, 1, 0),
    {"direction_accuracy": -0.6, "speed_mae": 0.2},
    (),
  ),
  "at half speed": (
    lambda rng, v: v[:, np.arange(17) // 2],
    {"speed_mae": 0.3},
    ("trajectory_error",),  # it stops on every other frame
  ),
  "frozen": (
    frozen,
    {"direction_accuracy": -0.8, "speed_mae": 0.6, "dynamic_degree": -0.8},
    (),
  ),
  "jittered": (jittered, {"trajectory_error": 0.8}, ()),
  "out of order": (
    lambda rng, v: v[:, rng.permutation(17)],
    {"trajectory_error": 2.5},
    ("speed_mae", "temporal_flickering"),
  ),
  "of changing light": (flickering, {"mass_cv": 0.1}, ()),
  "of changing glyphs": (
    switched,
    {"subject_consistency": -0.05},
    # Glyphs differ in ink, and in where its middle is.
    ("mass_cv", "trajectory_error", "speed_mae", "direction_accuracy"),
  ),
  "noisy": (
    lambda rng, v: np.clip(v + 20 * rng.normal(size=v.shape), 0, 255),
    {"temporal_flickering": -0.04},
    (),
  ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_clip_moves_the_figures_meant_for_its_failure(real, ceiling, name):
  spoil, wanted, follows = FAILURES[name]
  videos, *asked = real
  videos = spoil(np.random.default_rng(0), videos).astype(np.uint8)
  result = figures(videos, *asked)
  moved = {key: result[key] - ceiling[key] for key in QUIET}
  for key, least in wanted.items():
    assert moved[key] * np.sign(least) >= abs(least), (key, moved)
  for key in QUIET.keys() - wanted.keys() - set(follows):
    assert abs(moved[key]) <= QUIET[key], (key, moved)


def test_a_frozen_clip_is_consistent_but_not_dynamic(real):
  videos, *asked = real
  result = figures(frozen(None, videos), *asked)
  assert result["subject_consistency"] == pytest.approx(1, abs=1e-5)
  assert result["temporal_flickering"] == 1
  assert result["dynamic_degree"] == 0


def test_flicker_has_vbenchs_formula():
  videos = np.zeros((1, 3, 16, 16, 3), np.uint8)
  videos[0, 1] = 51
  seen = motion.read(videos, 10)
  assert seen["temporal_flickering"][0] == pytest.approx(204 / 255)


def test_velocity_is_pixels_a_frame_and_the_error_root_mean_square():
  glyph = digits.load_glyphs(16)[0][7]
  video = digits.render(glyph, np.array([2, 3]), np.array([0.5, 0.25]), 9, 32)
  seen = motion.read(video[None], 18)
  np.testing.assert_allclose(seen["velocity"], [[0.5, 0.25]], atol=0.01)
  still = digits.render(glyph, np.array([8, 8]), np.zeros(2), 8, 32)
  still[::2] = np.roll(still[::2], 2, 1)
  seen = motion.read(still[None], 18)
  # One pixel about the middle, less what a slope over eight frames takes off.
  slope = 4 / 84 * 2
  expected = np.sqrt(1 - slope**2 * 21 / 4)
  assert seen["trajectory_error"][0] == pytest.approx(expected, abs=0.02)


def test_what_cannot_be_seen_is_wrong_and_does_not_move(real):
  videos, *asked = real
  result = figures(0 * videos, *asked)
  assert result["readable"] == result["dynamic_degree"] == 0
  assert result["direction_accuracy"] == 0
  assert result["subject_consistency"] is None


def test_images_have_no_figures_of_motion(real):
  videos, *_ = real
  result = figures(videos[:, :1], np.full(NUM_VIDEOS, -1))
  assert result["readable"] == 1
  assert result["direction_accuracy"] is None
  assert result["temporal_flickering"] is None
  assert result["subject_consistency"] is None
  assert "speed_mae" not in result
