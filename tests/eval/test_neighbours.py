"""Figures of nearest neighbours against their definitions, sample by sample."""

import numpy as np
import pytest

from goku_jax.eval import neighbours
from goku_jax.typing import UserError


@pytest.fixture
def sets():
  draw = np.random.default_rng(0)
  real = draw.normal(size=(90, 6)) + 4
  return real, 0.8 * draw.normal(size=(70, 6)) + 4.3


def distances(one_ND, two_MD):
  return np.linalg.norm(one_ND[:, None] - two_MD, axis=-1)


def radii(x_ND, k):
  return np.sort(distances(x_ND, x_ND), axis=1)[:, k]


def by_definition(real_ND, made_MD, k, closed):
  inside = np.less_equal if closed else np.less
  between = distances(real_ND, made_MD)
  in_real = inside(between, radii(real_ND, k)[:, None])
  return {
    "precision": in_real.any(0).mean(),
    "recall": inside(between, radii(made_MD, k)).any(1).mean(),
    "density": in_real.sum() / k / len(made_MD),
    "coverage": in_real.any(1).mean(),
  }


@pytest.mark.parametrize("block", [1000, 17, 1])
def test_figures_are_those_of_the_definitions(monkeypatch, sets, block):
  monkeypatch.setattr(neighbours, "BLOCK", block)
  assert neighbours.prdc(*sets) == pytest.approx(by_definition(*sets, 5, False))
  expected = by_definition(*sets, 3, True)
  for dtype in ("float32", "float64"):
    found = neighbours.precision_recall(*sets, dtype=dtype)
    assert found == {key: expected[key] for key in ("precision", "recall")}


def test_a_ball_is_closed_for_adm_and_open_for_prdc():
  real = np.array([[0.0], [1], [2], [3]])
  made = np.array([[4.0], [5], [6], [7]])
  # Only 3 has the 4 exactly on the rim of its ball, and 4 has the 3.
  assert neighbours.precision_recall(real, made, k=1) == {
    "precision": 0.25,
    "recall": 0.25,
  }
  found = neighbours.prdc(real, made, k=1)
  assert found["precision"] == found["coverage"] == 0


def test_half_precision_is_near_and_not_the_same(sets):
  real, made = (np.concatenate([x] * 3, 1) for x in sets)
  distance = lambda dtype: neighbours._squared_distances(real, made, dtype)
  half, single = distance("float16"), distance("float32")
  assert half.dtype == np.float32
  assert 0.05 < np.abs(half - single).max() < 1.5
  found = neighbours.precision_recall(real, made)
  wanted = neighbours.precision_recall(real, made, dtype="float32")
  assert found == pytest.approx(wanted, abs=0.1)


def test_a_block_that_overflows_is_counted_in_single_precision(sets):
  real, made = (100 * x for x in sets)
  assert (np.square(real).sum(1) > np.finfo(np.float16).max).any()
  found, wanted = (
    neighbours.precision_recall(real, made, dtype=dtype)
    for dtype in ("float16", "float32")
  )
  assert found == wanted


def test_figures_know_neither_order_nor_axes(sets):
  real, made = sets
  draw = np.random.default_rng(1)
  turn, _ = np.linalg.qr(draw.normal(size=(6, 6)))
  figures = lambda real, made: {
    **neighbours.prdc(real, made),
    "auth": neighbours.auth_pct(real, made),
  }
  found = figures(real, made)
  assert figures(draw.permutation(real), draw.permutation(made)) == found
  assert figures(real @ turn, made @ turn) == found


def test_authentic_samples_are_those_far_from_what_they_resemble(sets):
  train, made = sets
  between = distances(made, train)
  nearest = between.argmin(1)
  expected = (between.min(1) > radii(train, 1)[nearest]).mean()
  assert neighbours.auth_pct(train, made) == pytest.approx(expected)
  assert 0.2 < expected < 0.9
  copies = train[:40]
  assert neighbours.auth_pct(train, copies) == 0
  # Not even where training samples are copies of each other.
  assert neighbours.auth_pct(np.concatenate([train, train]), copies) == 0
  assert neighbours.auth_pct(train, made + 1e3) == 1


def test_views_of_one_example_do_not_stand_for_its_neighbours(sets):
  train, made = sets
  examples = np.arange(len(train))
  draw = np.random.default_rng(2)
  views = np.concatenate(
    [train, *(train + 1e-3 * draw.normal(size=(3, *train.shape)))]
  )
  again = train[:40] + 2e-3 * draw.normal(size=(40, 6))
  assert neighbours.auth_pct(views, again) > 0.5
  assert neighbours.auth_pct(views, again, np.tile(examples, 4)) == 0
  # Without a second view it is the plain figure.
  assert neighbours.auth_pct(train, made, examples) == neighbours.auth_pct(
    train, made
  )
  found = neighbours.auth_pct(views, made, np.tile(examples, 4))
  assert found == pytest.approx(neighbours.auth_pct(train, made), abs=0.05)
  with pytest.raises(UserError, match="one training example"):
    neighbours.auth_pct(train, made, 0 * examples)


def test_what_cannot_be_compared_is_refused(sets):
  real, made = sets
  with pytest.raises(UserError, match="k=5 neighbours of 5 samples"):
    neighbours.prdc(real, made[:5])
  with pytest.raises(UserError, match="of one network"):
    neighbours.prdc(real, made[:, :3])
  with pytest.raises(UserError, match="no generated samples"):
    neighbours.auth_pct(real, made[:0])
  with pytest.raises(UserError, match="'half' is not one of"):
    neighbours.precision_recall(real, made, dtype="half")
  with pytest.raises(UserError, match="hold NaN"):
    neighbours.prdc(real, np.where(made > 5, np.nan, made))
