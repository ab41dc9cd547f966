"""Distances and scores of features against closed forms and other code."""

import numpy as np
import pytest
import scipy.linalg
import scipy.special

from goku_jax.eval import statistics
from goku_jax.typing import UserError


@pytest.fixture
def draw():
  return np.random.default_rng(0)


def pair(draw, num_one, num_two, width):
  """Features whose directions differ in scale, unlike in the two sets."""
  shape = draw.normal(size=(width, width)) / np.sqrt(width)
  one = draw.normal(size=(num_one, width)) @ shape
  two = draw.normal(size=(num_two, width)) * np.linspace(0.2, 2, width) + 0.3
  return one, two


def distance(one_ND, two_ND):
  return statistics.frechet_distance(*map(statistics.fit, (one_ND, two_ND)))


def by_sqrtm(one_ND, two_ND):
  one, two = (np.cov(x, rowvar=False) for x in (one_ND, two_ND))
  step = one_ND.mean(0) - two_ND.mean(0)
  root = scipy.linalg.sqrtm(one @ two)
  return step @ step + np.trace(one + two) - 2 * np.trace(root).real


def test_moments_are_numpys(draw):
  one, _ = pair(draw, 50, 2, 7)
  found = statistics.fit(one)
  np.testing.assert_allclose(found.mean, one.mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.covariance, np.cov(one.T), rtol=1e-11)
  biased = statistics.fit(one, "biased").covariance
  np.testing.assert_allclose(biased, np.cov(one.T, bias=True), rtol=1e-11)


def test_batches_on_hosts_merge_into_all_at_once(draw):
  one = 1e4 + pair(draw, 90, 2, 7)[0]  # far from 0, where sums would cancel
  hosts = [statistics.Moments() for _ in range(3)]
  for i, batch in enumerate(np.split(one, [1, 20, 20, 77])):
    hosts[i % 2].add(batch)
  received = [statistics.Moments(h.count, h.mean, h.scatter) for h in hosts]
  total = statistics.Moments()
  for host in received:
    total.merge(host)
  found, whole = total.gaussian(), statistics.fit(one)
  assert total.count == 90
  np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-13)
  np.testing.assert_allclose(found.covariance, whole.covariance, atol=1e-10)


def test_diagonal_gaussians_have_the_closed_form():
  one = statistics.Gaussian(np.array([1.0, 2, 3]), np.diag([1.0, 4, 0]))
  two = statistics.Gaussian(np.array([1.0, 0, 3]), np.diag([9.0, 4, 16]))
  found = statistics.frechet_distance(one, two)
  assert found == pytest.approx(4 + (1 - 3) ** 2 + 0 + 16, rel=1e-12)


def test_equal_sets_are_at_zero_and_a_shift_at_its_square(draw):
  one, _ = pair(draw, 300, 2, 20)
  assert distance(one, one) == pytest.approx(0, abs=1e-9)
  assert distance(one, one + 0.5) == pytest.approx(20 * 0.25, rel=1e-9)
  assert distance(one, 3 * one) == pytest.approx(
    np.square(2 * one.mean(0)).sum() + 4 * np.trace(np.cov(one.T)), rel=1e-9
  )


@pytest.mark.parametrize("num", [400, 40], ids=["full rank", "rank deficient"])
def test_the_distance_is_that_of_the_matrix_root(draw, num):
  sets = pair(draw, num, num - 5, 64)
  assert distance(*sets) == pytest.approx(by_sqrtm(*sets), rel=1e-6)


def test_fewer_samples_than_features_are_exact(draw):
  one, two = pair(draw, 40, 30, 128)
  # tr (S1 S2)^(1/2) is the nuclear norm of the product of the deviations.
  centred = [x - x.mean(0) for x in (one, two)]
  values = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False)
  cross = values.sum() / np.sqrt(39 * 29)
  spread = sum(np.trace(np.cov(x.T)) for x in (one, two))
  expected = np.square(one.mean(0) - two.mean(0)).sum() + spread - 2 * cross
  assert distance(one, two) == pytest.approx(expected, rel=1e-7)
  assert distance(one, two) == pytest.approx(distance(two, one), rel=1e-7)


def test_figures_know_neither_order_nor_axes(draw):
  one, two = pair(draw, 200, 150, 16)
  turn, _ = np.linalg.qr(draw.normal(size=(16, 16)))
  for figure in (distance, statistics.kernel_distance):
    found = figure(one, two)
    assert figure(two, one) == pytest.approx(found, rel=1e-9)
    shuffled = draw.permutation(one), draw.permutation(two)
    assert figure(*shuffled) == pytest.approx(found, rel=1e-9)
    assert figure(one @ turn, two @ turn) == pytest.approx(found, rel=1e-9)


def test_the_biased_covariance_lowers_the_distance(draw):
  sets = pair(draw, 50, 50, 16)
  biased = [statistics.fit(x, "biased") for x in sets]
  assert statistics.frechet_distance(*biased) < distance(*sets)


def test_the_frechet_distance_falls_with_samples_and_the_kernel_does_not(draw):
  shape = draw.normal(size=(16, 16)) / 4
  one, two = (draw.normal(size=(4000, 16)) @ shape for _ in range(2))
  few = [(one[i : i + 60], two[i : i + 60]) for i in range(0, 3000, 60)]
  assert np.mean([distance(*s) for s in few]) > 10 * distance(one, two)
  found = [statistics.kernel_distance(*s) for s in few]
  error = np.std(found) / np.sqrt(len(found))
  assert abs(np.mean(found)) < 3 * error
  assert min(found) < 0


def test_the_kernel_distance_is_its_definition(draw):
  one, two = pair(draw, 7, 5, 3)
  k = lambda x, y: (x @ y / 3 + 1) ** 3
  mean = lambda xs, ys, same: np.mean(
    [
      k(x, y)
      for i, x in enumerate(xs)
      for j, y in enumerate(ys)
      if not (same and i == j)
    ]
  )
  expected = mean(one, one, 1) + mean(two, two, 1) - 2 * mean(one, two, 0)
  assert statistics.kernel_distance(one, two) == pytest.approx(expected)


def test_the_inception_score_is_the_number_of_even_classes():
  certain = np.log(np.tile(np.eye(5), (4, 1)) + 1e-300)
  found, spread = statistics.inception_score(certain, split_size=10)
  assert found == pytest.approx(5)
  assert spread == pytest.approx(0)
  same = np.zeros((20, 5))
  assert statistics.inception_score(same, splits=2)[0] == pytest.approx(1)


def test_logits_score_as_their_probabilities(draw):
  logits = 3 * draw.normal(size=(30, 6)) + 700 * draw.normal(size=(30, 1))
  p = scipy.special.softmax(logits, axis=1)
  kl = (p * np.log(p / p.mean(0))).sum(1).mean()
  for scores in (logits, np.log(p)):
    found, _ = statistics.inception_score(scores, split_size=30)
    assert found == pytest.approx(np.exp(kl))


def test_splits_follow_the_protocol_by_name(draw):
  """Sorted classes: unshuffled splits see one class each."""
  logits = 20 * np.repeat(np.eye(10), 1000, axis=0)
  protocols = statistics.IS_PROTOCOLS
  adm, _ = statistics.inception_score(logits, **protocols["adm"])
  assert adm == pytest.approx(5, rel=1e-3)
  shuffled, _ = statistics.inception_score(logits, **protocols["stylegan_v"])
  assert shuffled == pytest.approx(10, rel=0.01)
  order = np.random.RandomState(42).permutation(10000)
  same, _ = statistics.inception_score(logits[order], splits=10)
  assert same == shuffled


@pytest.mark.parametrize(
  ("protocol", "count"), [("adm", 4999), ("adm", 7500), ("stylegan_v", 9)]
)
def test_too_few_samples_for_a_split_are_refused(protocol, count):
  with pytest.raises(UserError, match=f"{count} samples"):
    statistics.inception_score(
      np.zeros((count, 3)), **statistics.IS_PROTOCOLS[protocol]
    )


def test_what_is_no_set_of_features_is_refused(draw):
  one, two = pair(draw, 20, 20, 4)
  one[[3, 5], 1] = np.nan, np.inf
  with pytest.raises(UserError, match="2 of 20 samples, the first 3"):
    statistics.fit(one)
  with pytest.raises(UserError, match="2 of 20 samples"):
    statistics.kernel_distance(one, two)
  with pytest.raises(UserError, match="shape"):
    statistics.fit(two[0])
  with pytest.raises(UserError, match="cannot join"):
    statistics.Moments().add(two).add(two[:, :3])
  with pytest.raises(UserError, match="of one network"):
    distance(two, two[:, :3])
  with pytest.raises(UserError, match="of one network"):
    statistics.kernel_distance(two, two[:, :3])
  with pytest.raises(UserError, match="1 samples have no covariance"):
    statistics.fit(two[:1])
  with pytest.raises(UserError, match="unbiased, biased"):
    statistics.fit(two, "sample")


def test_only_the_joint_distance_sees_wrong_labels(draw):
  labels = np.repeat(np.arange(4), 100)
  centres = 2 * draw.normal(size=(4, 8))
  real, made = (centres[labels] + draw.normal(size=(400, 8)) for _ in range(2))
  joint = lambda labels_of_made: statistics.joint_distance(
    real, labels, made, labels_of_made, 4
  )
  right = joint(labels)
  some, all_ = labels.copy(), np.roll(labels, 100)
  some[::5] = (some[::5] + 1) % 4
  assert right >= distance(real, made)
  assert right < 2 * distance(real, made)
  assert joint(some) > 2 * right
  assert joint(all_) > 2 * joint(some)
