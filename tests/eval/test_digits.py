"""The judge: right about real clips, and about every way to be wrong."""

import json

import chex
import numpy as np
import pytest

from goku_jax.data import digits as source
from goku_jax.eval import digits

NUM_VIDEOS = 120  # crops of which fill a chunk, almost


@pytest.fixture(scope="module")
def real():
  """Clips of glyphs that the judge has never seen, all pairs."""
  clips = source.Digits("test", pairs="all", image_share=0.0, seed=3)
  samples = [clips[i] for i in range(NUM_VIDEOS)]
  videos = np.stack([sample["video"] for sample in samples])
  asked = [
    np.array([sample[key] for sample in samples])
    for key in ("digit", "direction", "speed")
  ]
  return videos, *asked


def test_the_judge_reads_held_out_glyphs(judge):
  assert judge.accuracy >= 0.98


@pytest.mark.slow
def test_the_suites_own_judge_reads_held_out_glyphs():
  assert digits.train_judge().accuracy >= 0.98


def test_the_judge_is_trained_on_training_glyphs_alone(monkeypatch):
  seen = []
  glyph_indices, step = source.glyph_indices, digits._step
  monkeypatch.setattr(
    source, "glyph_indices", lambda s: seen.append(s) or glyph_indices(s)
  )
  monkeypatch.setattr(
    digits, "_step", lambda *args: seen.append("step") or step(*args)
  )
  digits.train_judge(num_steps=3, batch_size=64)
  assert seen == ["train", "step", "step", "step", "test"]
  assert not set(glyph_indices("train")) & set(glyph_indices("test"))


@pytest.mark.slow
def test_a_judge_is_a_function_of_its_seed():
  a, b, c = (digits.train_judge(seed, num_steps=3) for seed in (1, 1, 2))
  assert a.accuracy == b.accuracy
  chex.assert_trees_all_equal(a.params, b.params)
  kernel = lambda judge: judge.params["params"]["head"]["kernel"]
  assert np.any(kernel(a) != kernel(c))


def test_real_clips_are_read(judge, real):
  result = digits.score(judge, *real)
  assert result["num_videos"] == NUM_VIDEOS
  assert result["digit_accuracy"] >= 0.97
  assert result["direction_accuracy"] == 1
  assert result["both_accuracy"] == result["digit_accuracy"]
  assert result["readable"] == 1
  assert result["speed_mae"] < 0.01
  assert result["trajectory_error"] < 0.05
  json.dumps(result, allow_nan=False)


def blurred(videos):
  x = videos.astype(float)
  for axis in (2, 3):
    x = (np.roll(x, 1, axis) + np.roll(x, -1, axis)) / 4 + x / 2
  return x


@pytest.mark.parametrize(
  "worsen",
  [
    blurred,
    lambda v: v + 20 * np.random.default_rng(0).normal(size=v.shape),
    lambda v: 0.6 * v + 20,
  ],
  ids=["blur", "noise", "haze"],
)
def test_mild_faults_of_a_vae_are_forgiven(judge, real, worsen):
  videos, *asked = real
  videos = np.clip(worsen(videos), 0, 255).astype(np.uint8)
  result = digits.score(judge, videos, *asked)
  assert result["digit_accuracy"] >= 0.94
  assert result["direction_accuracy"] >= 0.98


def test_reversed_clips_go_elsewhere(judge, real):
  videos, digit, direction, speed = real
  result = digits.score(judge, videos[:, ::-1], digit, direction, speed)
  still = np.mean(direction == source.STILL)
  assert result["direction_accuracy"] == pytest.approx(still)
  assert result["digit_accuracy"] >= 0.97


def test_frozen_clips_are_still(judge, real):
  videos, *_ = real
  seen = digits.read(judge, np.repeat(videos[:, :1], 17, axis=1))
  assert (seen["direction"] == source.STILL).all()
  assert (seen["speed"] < 1e-3).all()


def test_another_digit_is_wrong(judge, real):
  videos, digit, direction, _ = real
  result = digits.score(judge, videos, (digit + 1) % 10, direction)
  assert result["digit_accuracy"] <= 0.03
  assert result["direction_accuracy"] == 1
  assert "speed_mae" not in result


def test_a_digit_that_changes_on_the_way_is_read_once(judge, real):
  videos, digit, direction, _ = real
  mixed = np.concatenate([videos[:, :5], videos[::-1, 5:]], axis=1)
  result = digits.score(judge, mixed, digit, direction)
  assert result["both_accuracy"] < 0.3


@pytest.mark.parametrize(
  "make",
  [
    lambda rng, v: 0 * v,
    lambda rng, v: 0 * v + 30,
    lambda rng, v: v // 8,
    lambda rng, v: rng.integers(0, 256, v.shape),
    lambda rng, v: rng.integers(0, 256, (*v.shape[:4], 1)).repeat(3, -1),
    lambda rng, v: np.maximum(v, np.roll(v, (16, 16), (2, 3))),
    lambda rng, v: np.concatenate([v[:, :9], 0 * v[:, 9:]], 1),
  ],
  ids=["black", "grey", "dim", "colours", "noise", "two digits", "vanishing"],
)
def test_what_cannot_be_read_is_wrong_in_every_respect(judge, real, make):
  videos, *asked = real
  videos = make(np.random.default_rng(0), videos).astype(np.uint8)
  result = digits.score(judge, videos, *asked)
  assert result["digit_accuracy"] <= 0.01
  assert result["direction_accuracy"] <= 0.01
  json.dumps(result, allow_nan=False)


def test_images_count_for_the_digit_alone(judge, real):
  videos, digit, *_ = real
  result = digits.score(judge, videos[:, :1], digit, np.full(NUM_VIDEOS, -1))
  assert result["digit_accuracy"] >= 0.95
  assert result["direction_accuracy"] is None


@pytest.mark.parametrize("direction", range(6))
def test_motion_of_any_length_and_canvas(judge, direction):
  glyph = source.load_glyphs(16)[0][7]
  step = source.STEPS[direction] * 0.7
  start = np.array([24.0, 40.0])
  video = source.render(glyph, start, step, 9, 96)[None]
  seen = digits.read(judge, video)
  assert seen["direction"][0] == direction
  assert seen["speed"][0] == pytest.approx(0.7, abs=0.02)


def test_the_report_names_ceiling_and_floor():
  row = {"num_videos": 210, "digit_accuracy": 0.9, "direction_accuracy": 0.95}
  row |= {"both_accuracy": 0.855, "readable": 1.0}
  names = ("generated", "held_out_pairs", "real", "reconstructed", "untrained")
  result = {name: dict(row) for name in names}
  result |= {"judge_accuracy": 0.987, "seconds": 700.0}
  page = digits.report_markdown(result)
  assert page.count("| 90.0 % | 95.0 % | 85.5 % | 100.0 % | 210 |") == 5
  assert "98.7 % of held-out" in page
  assert "is reached" in page
  assert "700 seconds" in page
  assert "ceiling" in page
  assert "floor" in page


def test_the_report_does_not_flatter():
  bad = {"num_videos": 210, "digit_accuracy": 0.5, "direction_accuracy": None}
  page = digits.report_markdown({"generated": bad, "judge_accuracy": 0.9})
  assert "NOT reached (digit_accuracy, direction_accuracy)" in page
  assert "do not trust" in page
  assert page.count("not measured") == 4
