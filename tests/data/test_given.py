"""What a model is told of given frames, and that draws belong to the sample."""

import numpy as np
import pytest

from goku_jax.data import given
from goku_jax.typing import UserError

SHAPE = (5, 2, 3, 4)
PLAIN = dict(first=0.0, first_last=0.0, run=0.0, noise_mean=-3.0, noise_std=0.0)


def frames(count, start=1.0):
  return np.arange(start, start + count)[:, None, None, None] * np.ones(
    SHAPE[1:], np.float32
  )


def told(condition):
  """Value and mask of each latent frame, which are the same all over it."""
  assert (condition == condition[:, :1, :1]).all()
  assert (condition[..., :-1] == condition[..., :1]).all()
  return condition[:, 0, 0, 0].tolist(), condition[:, 0, 0, -1].tolist()


def test_a_first_frame_is_repeated_over_time():
  """Section 2.5; the mask says where it stands."""
  condition = given.fill(SHAPE, [(0, frames(1, 7))])
  assert condition.shape == (5, 2, 3, 5)
  assert told(condition) == ([7] * 5, [1, 0, 0, 0, 0])


@pytest.mark.parametrize(
  ("runs", "values", "mask"),
  [
    ([], [0] * 5, [0] * 5),
    ([(0, 1, 7), (4, 1, 9)], [7, 7, 7, 7, 9], [1, 0, 0, 0, 1]),
    ([(4, 1, 9), (0, 1, 7)], [7, 7, 7, 7, 9], [1, 0, 0, 0, 1]),
    ([(0, 3, 1)], [1, 2, 3, 3, 3], [1, 1, 1, 0, 0]),
    ([(2, 1, 5)], [5] * 5, [0, 0, 1, 0, 0]),  # before it, the first there is
    ([(1, 2, 3), (4, 1, 8)], [3, 3, 4, 4, 8], [0, 1, 1, 0, 1]),
  ],
)
def test_each_frame_has_the_nearest_given_one_before_it(runs, values, mask):
  condition = given.fill(SHAPE, [(p, frames(n, x)) for p, n, x in runs])
  assert told(condition) == (values, mask)


def sample(index=0, length=5):
  clip = frames(length)
  ends = {"first": 10 * clip[:1], "last": 10 * clip[-1:]}
  return {"mean": clip, "index": index, **ends}


def draw(index=0, visit=0, length=5, seed=0, **shares):
  by = given.Given(seed, **PLAIN | shares)
  return by.draw(sample(index, length), visit)


def test_single_frames_are_those_encoded_alone():
  assert told(draw(first=1.0)) == ([10] * 5, [1, 0, 0, 0, 0])
  assert told(draw(first_last=1.0)) == ([10] * 4 + [50], [1, 0, 0, 0, 1])


def test_runs_are_of_the_clip_and_leave_something_to_draw():
  lengths = set()
  for index in range(200):
    values, mask = told(draw(index, run=1.0))
    n = int(sum(mask))
    lengths.add(n)
    assert values == [*range(1, n + 1), *[n] * (5 - n)]
  assert lengths == {2, 3, 4}
  assert told(draw(length=2, run=1.0)) == ([10, 10], [1, 0])


def test_kinds_come_by_their_shares():
  shares = dict(first=0.5, first_last=0.2, run=0.1)
  kinds = [told(draw(i, **shares))[1] for i in range(2000)]
  count = lambda mask: kinds.count(mask) / len(kinds)
  assert count([1, 0, 0, 0, 0]) == pytest.approx(0.5, abs=0.04)
  assert count([1, 0, 0, 0, 1]) == pytest.approx(0.2, abs=0.04)
  assert count([0] * 5) == pytest.approx(0.2, abs=0.04)  # dropped


def test_an_image_is_told_nothing():
  assert not draw(length=1, first=1.0).any()


def test_noise_is_on_what_is_given_and_the_samples_own():
  shares = dict(first=1.0, noise_std=0.5, noise_mean=-1.0)
  clean, noised = draw(first=1.0), draw(**shares)
  assert (noised == noised[:1])[..., :-1].all()  # one noise, repeated
  np.testing.assert_array_equal(noised[..., -1], clean[..., -1])
  np.testing.assert_array_equal(noised, draw(**shares))
  others = draw(1, **shares), draw(visit=1, **shares), draw(seed=1, **shares)
  for other in others:
    assert (noised[0] != other[0])[..., :-1].all()


def test_the_level_of_noise_is_log_normal():
  big = {"mean": np.zeros((2, 8, 8, 16), np.float32)}
  big["first"] = big["mean"][:1]
  by = given.Given(0, **PLAIN | dict(first=1.0, noise_std=0.5))
  levels = [
    by.draw({**big, "index": i}, 0)[0, ..., :-1].std() for i in range(500)
  ]
  logs = np.log(levels)
  assert logs.mean() == pytest.approx(-3.0, abs=0.1)
  assert logs.std() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
  ("shares", "message"),
  [
    (dict(first=0.8, run=0.3), "sum to 1 at most"),
    (dict(first=-0.1), "0 or more"),
    (dict(noise_std=-1.0), "noise_std=-1.0: set 0 or more"),
  ],
)
def test_shares_that_cannot_be_are_refused(shares, message):
  with pytest.raises(UserError, match=message):
    draw(**shares)
