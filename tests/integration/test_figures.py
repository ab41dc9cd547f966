"""Every way to spoil real digits moves the figures meant for it, and no other.

The features are the scores of a ridge regression on fixed random projections,
fitted to training glyphs: enough to tell digits apart, and made in a second.
Random features alone, or pixels, nearly miss classes that are left out.
"""

import numpy as np
import pytest

from goku_jax.data import digits
from goku_jax.eval import neighbours, statistics


class Benchmark:
  """Training and held-out glyphs, features of them, and all figures."""

  def __init__(self):
    glyphs, labels, _ = digits.load_glyphs(8)
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
      of_digit = np.flatnonzero(labels == digit)
      is_test[of_digit[::5]] = is_test[of_digit[1::5]] = True
    x = 2.0 * glyphs.reshape(len(glyphs), -1) - 1
    self.train, self.train_labels = x[~is_test], labels[~is_test]
    self.test, self.test_labels = x[is_test], labels[is_test]
    self.draw = np.random.default_rng(0)
    self._weights = 0.7 * self.draw.normal(size=(64, 512)) / 8
    self._bias = self.draw.uniform(-1, 1, 512)
    noise = 0.15 * self.draw.normal(size=(3, *self.train.shape))
    seen = np.concatenate([self.train, *(self.train + noise)])
    hidden = self._hidden(seen)
    wanted = np.eye(10)[np.tile(self.train_labels, 4)]
    self._read_out = np.linalg.solve(
      hidden.T @ hidden + np.eye(513), hidden.T @ wanted
    )
    self.real = self.features(self.test)

  def _hidden(self, x):
    hidden = np.tanh(x @ self._weights + self._bias)
    return np.concatenate([hidden, np.ones((len(x), 1))], 1)

  def features(self, x):
    return self._hidden(x) @ self._read_out

  def figures(self, x, labels):
    made = self.features(x)
    fits = [statistics.fit(features) for features in (self.real, made)]
    return {
      "frechet": statistics.frechet_distance(*fits),
      "kernel": statistics.kernel_distance(self.real, made),
      "joint": statistics.joint_distance(
        self.real, self.test_labels, made, labels, 10
      ),
      **neighbours.prdc(self.real, made),
      "adm": neighbours.precision_recall(self.real, made),
      "auth": neighbours.auth_pct(self.train, x),
      "adherence": np.mean(made.argmax(1) == labels),
    }

  def noisy(self, amount):
    noise = amount * self.draw.normal(size=self.train.shape)
    return np.clip(self.train + noise, -1, 1), self.train_labels

  def without(self, num_classes):
    kept = self.train_labels >= num_classes
    return self.train[kept], self.train_labels[kept]

  def collapsed(self, num_samples):
    chosen = self.draw.integers(0, num_samples, len(self.train))
    return self.train[chosen], self.train_labels[chosen]

  def mislabelled(self, share):
    labels = self.train_labels
    wrong = self.draw.random(len(labels)) < share
    return self.train, np.where(wrong, (labels + 1) % 10, labels)


@pytest.fixture(scope="module")
def benchmark():
  return Benchmark()


@pytest.fixture(scope="module")
def floor(benchmark):
  return benchmark.figures(benchmark.train, benchmark.train_labels)


def falls(values, by):
  """Whether each value is less than the one before, and the last by `by`."""
  return (np.diff(values) < 0).all() and values[0] - values[-1] >= by


def test_the_floor_is_low_and_the_probe_reads(benchmark, floor):
  read = benchmark.real.argmax(1) == benchmark.test_labels
  assert read.mean() > 0.95
  assert floor["frechet"] < 0.003
  assert abs(floor["kernel"]) < 0.001
  assert floor["precision"] > 0.95
  assert floor["recall"] > 0.7
  assert floor["density"] > 0.9
  assert floor["coverage"] > 0.95
  assert floor["adherence"] > 0.99
  assert floor["auth"] == 0  # it is the training set


def test_noise_costs_fidelity_and_not_recall(benchmark, floor):
  rows = [benchmark.figures(*benchmark.noisy(a)) for a in (0.2, 0.4, 0.8)]
  of = lambda key: np.array([row[key] for row in (floor, *rows)])
  assert falls(-of("frechet"), 0.03)
  assert falls(-of("kernel"), 0.001)
  assert falls(of("precision"), 0.5)
  assert falls(of("density"), 0.9)
  assert falls(of("coverage"), 0.5)
  assert falls(-of("auth"), 0.9)
  assert (of("recall") >= floor["recall"]).all()
  adm = [row["adm"] for row in (floor, *rows)]
  assert falls([figures["precision"] for figures in adm], 0.5)
  assert min(figures["recall"] for figures in adm) == adm[0]["recall"]


def test_classes_left_out_cost_recall_and_not_precision(benchmark, floor):
  rows = [benchmark.figures(*benchmark.without(n)) for n in (1, 3, 5)]
  of = lambda key: np.array([row[key] for row in (floor, *rows)])
  assert falls(-of("frechet"), 0.3)
  assert rows[0]["frechet"] > 20 * floor["frechet"]
  assert falls(-of("kernel"), 0.01)
  assert falls(of("recall"), 0.3)
  assert falls(of("coverage"), 0.4)
  assert np.ptp(of("precision")) < 0.02
  assert np.ptp(of("density")) < 0.1
  assert np.ptp(of("adherence")) < 0.01
  adm = [row["adm"] for row in (floor, *rows)]
  assert falls([figures["recall"] for figures in adm], 0.3)
  assert np.ptp([figures["precision"] for figures in adm]) < 0.02


def test_a_collapse_costs_recall_and_coverage(benchmark, floor):
  found = benchmark.figures(*benchmark.collapsed(20))
  assert found["recall"] == found["adm"]["recall"] == 0
  assert found["coverage"] < 0.3
  assert found["precision"] > 0.95
  assert found["adherence"] > 0.95
  assert found["auth"] == 0
  assert found["frechet"] > 20 * floor["frechet"]


def test_wrong_labels_cost_adherence_and_the_joint_distance(benchmark, floor):
  rows = [benchmark.figures(*benchmark.mislabelled(p)) for p in (0.1, 0.3)]
  of = lambda key: np.array([row[key] for row in (floor, *rows)])
  assert falls(of("adherence"), 0.25)
  assert falls(-of("joint"), 2 * floor["joint"])
  blind = floor.keys() - {"adherence", "joint"}
  for row in rows:
    assert all(row[key] == floor[key] for key in blind)


def test_held_out_glyphs_are_the_measure_of_copying(benchmark):
  """Half of new real glyphs count as copies: a share of 1 is no aim."""
  held_out = neighbours.auth_pct(benchmark.train, benchmark.test)
  assert 0.4 < held_out < 0.7
