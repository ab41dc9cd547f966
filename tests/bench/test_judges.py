"""The bench of evaluation runs, and its figures hold together."""

import pytest

from goku_jax.bench import judges
from goku_jax.eval import statistics


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_are_timed_and_agree():
  rows = {"inception": 1, "i3d": 1}
  found = judges.compare(rounds=1, features=64, rows=rows)
  for network in rows:
    ours = found[f"{network}_per_second"]
    theirs = found[f"{network}_torch_per_second"]
    assert found[f"{network}_ratio"] == pytest.approx(ours / theirs)
    assert found[f"{network}_difference"] < 1e-5
  ours, theirs = found["statistics_seconds"], found["sqrtm_seconds"]
  assert found["statistics_ratio"] == pytest.approx(theirs / ours)
  assert found["statistics_difference"] < 1e-6


def test_the_published_formula_gives_our_distance():
  one, two = judges.make_gaussians(64)
  distance = statistics.frechet_distance(one, two)
  assert distance > 0.1
  assert judges.sqrtm_distance(one, two) == pytest.approx(distance, rel=1e-6)
