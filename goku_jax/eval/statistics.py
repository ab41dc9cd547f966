"""Figures of two sets of features: Frechet and kernel distances, and scores.

In float64 by NumPy alone, of features that some network gave.

  Frechet    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), the last by the
             eigenvalues of R^T S2 R with R R^T = S1 (Heusel et al. 2017,
             arXiv:1706.08500, equation 6)
  kernel     unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3 (Binkowski et al.
             2018, arXiv:1801.01401)
  Inception  exp of the mean KL from p(class | sample) to p(class) (Salimans et
             al. 2016, arXiv:1606.03498, section 4)

A Frechet distance falls as samples grow in number: compare equal N alone. The
kernel distance does not, and may be slightly negative.

Letters: N samples, D features, K classes.
"""

import dataclasses
import itertools

import numpy as np

from goku_jax.typing import UserError

# Divisors of the scatter: N less this. torch and TensorFlow ports of FID say
# unbiased, those of FVD biased.
COVARIANCES = {"unbiased": 1, "biased": 0}

# How an Inception score is split, by who publishes it.
IS_PROTOCOLS = {
  "adm": {"split_size": 5000},
  "stylegan_v": {"splits": 10, "shuffle_seed": 42},
}


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """A mean [D] and a covariance [D, D], float64."""

  mean: np.ndarray
  covariance: np.ndarray


class Moments:
  """The moments of features that come in batches, on one host or several.

  `count`, `mean` [D] and `scatter` [D, D], the sum of outer products of
  deviations from the mean: three numbers or arrays that hosts exchange, and
  that merge exactly (Chan et al. 1979).
  """

  def __init__(self, count=0, mean=0.0, scatter=0.0):
    self.count, self.mean, self.scatter = int(count), mean, scatter

  def add(self, features_ND: np.ndarray) -> "Moments":
    """Counts a batch, and returns itself."""
    features_ND = as_features(features_ND)
    if not len(features_ND):
      return self
    mean = features_ND.mean(0)
    centred = features_ND - mean
    return self.merge(Moments(len(centred), mean, centred.T @ centred))

  def merge(self, other: "Moments") -> "Moments":
    """Counts what another has counted, and returns itself."""
    if not other.count:
      return self
    if self.count and len(self.mean) != len(other.mean):
      raise UserError(
        f"features of {len(other.mean)} numbers cannot join those of"
        f" {len(self.mean)}"
      )
    total = self.count + other.count
    step = other.mean - self.mean
    between = self.count * other.count / total
    scatter = self.scatter + other.scatter + between * np.outer(step, step)
    self.mean = self.mean + step * (other.count / total)
    self.count, self.scatter = total, scatter
    return self

  def gaussian(self, covariance: str = "unbiased") -> Gaussian:
    """The mean and the covariance, "unbiased" (1 / (N-1)) or "biased" (1 / N).

    Raises:
      UserError: fewer than two samples, or another name.
    """
    if covariance not in COVARIANCES:
      known = ", ".join(COVARIANCES)
      raise UserError(f"covariance={covariance!r} is not one of {known}")
    if self.count < 2:
      raise UserError(
        f"{self.count} samples have no covariance: give 2 or more"
      )
    divisor = self.count - COVARIANCES[covariance]
    return Gaussian(self.mean, self.scatter / divisor)


def fit(features_ND: np.ndarray, covariance: str = "unbiased") -> Gaussian:
  """The Gaussian of features that are all at hand."""
  return Moments().add(features_ND).gaussian(covariance)


def as_features(features_ND: np.ndarray) -> np.ndarray:
  """The features in float64, refused where they are no numbers."""
  features_ND = np.asarray(features_ND, np.float64)
  if features_ND.ndim != 2:
    raise UserError(f"features of shape {features_ND.shape}: give [N, D]")
  bad = np.flatnonzero(~np.isfinite(features_ND).all(1))
  if len(bad):
    raise UserError(
      f"features of {len(bad)} of {len(features_ND)} samples, the first"
      f" {bad[0]}, hold NaN or infinity: look at these samples"
    )
  return features_ND


def frechet_distance(one: Gaussian, two: Gaussian) -> float:
  """The squared Frechet (2-Wasserstein) distance of two Gaussians."""
  if one.mean.shape != two.mean.shape:
    raise UserError(
      f"features of {len(one.mean)} and {len(two.mean)} numbers: compare those"
      " of one network and layer"
    )
  root = _root(one.covariance)
  product = np.linalg.eigvalsh(root.T @ two.covariance @ root)
  # Rounding makes some zeros negative.
  cross = np.sqrt(np.maximum(product, 0)).sum()
  traces = np.trace(one.covariance) + np.trace(two.covariance)
  return float(np.square(one.mean - two.mean).sum() + traces - 2 * cross)


def _root(covariance):
  """R with R R^T = S: R^T S2 R has the eigenvalues of S^(1/2) S2 S^(1/2)."""
  try:
    return np.linalg.cholesky(covariance)  # a tenth of the time
  except np.linalg.LinAlgError:  # fewer samples than numbers
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def kernel_distance(one_ND: np.ndarray, two_ND: np.ndarray) -> float:
  """The unbiased MMD^2 of two sets of features, all at once (KVD)."""
  one_ND, two_ND = as_features(one_ND), as_features(two_ND)
  n, m = len(one_ND), len(two_ND)
  if min(n, m) < 2:
    raise UserError(f"{min(n, m)} samples have no distance: give 2 or more")
  if one_ND.shape[1] != two_ND.shape[1]:
    raise UserError(
      f"features of {one_ND.shape[1]} and {two_ND.shape[1]} numbers: compare"
      " those of one network and layer"
    )
  within = sum(
    (_kernel_sum(x, x) - ((np.square(x).mean(1) + 1) ** 3).sum())
    / (len(x) * (len(x) - 1))
    for x in (one_ND, two_ND)
  )
  return float(within - 2 * _kernel_sum(one_ND, two_ND) / (n * m))


def _kernel_sum(one_ND, two_ND) -> float:
  """The sum of the kernel over all pairs, in blocks of rows."""
  total = 0.0
  for i in range(0, len(one_ND), 1000):
    base = one_ND[i : i + 1000] @ two_ND.T / one_ND.shape[1] + 1
    total += (base * base * base).sum()  # a power takes ten times as long
  return total


def inception_score(
  logits_NK: np.ndarray,
  *,
  split_size: int | None = None,
  splits: int | None = None,
  shuffle_seed: int | None = None,
) -> tuple[float, float]:
  """Mean and standard deviation of the score over splits of the samples.

  Args:
    logits_NK: or logarithms of probabilities.
    split_size: samples of a split, or else
    splits: how many there are. `**IS_PROTOCOLS["adm"]` has the published ones.
    shuffle_seed: samples are shuffled by it first; None leaves the order.

  Raises:
    UserError: too few samples for a split, or some left over.
  """
  logits_NK = as_features(logits_NK)
  N = len(logits_NK)
  if (split_size is None) == (splits is None):
    raise ValueError("give split_size or splits")
  if splits is None:
    if split_size > N or N % split_size:
      raise UserError(
        f"{N} samples are not splits of {split_size}: make a multiple of it"
      )
    splits = N // split_size
  if splits > N:
    raise UserError(f"{N} samples in {splits} splits: make more samples")
  if shuffle_seed is not None:
    order = np.random.RandomState(shuffle_seed).permutation(N)
    logits_NK = logits_NK[order]
  edges = np.arange(splits + 1) * N // splits
  scores = [
    _score(logits_NK[low:high]) for low, high in itertools.pairwise(edges)
  ]
  return float(np.mean(scores)), float(np.std(scores))


def _score(logits_NK):
  top = logits_NK - logits_NK.max(1, keepdims=True)
  log_p = top - np.log(np.exp(top).sum(1, keepdims=True))
  p = np.exp(log_p)
  # A class that no sample has adds 0 log 0 = 0.
  log_q = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
  return np.exp((p * (log_p - log_q)).sum(1).mean())


def joint_distance(
  real_ND: np.ndarray,
  real_labels_N: np.ndarray,
  made_ND: np.ndarray,
  made_labels_N: np.ndarray,
  num_classes: int,
) -> float:
  """The Frechet distance of features beside labels, which sees wrong labels.

  A label is a one-hot vector times the mean |feature| of the real samples
  (DeVries et al. 2019, arXiv:1907.08175).
  """
  scale = np.abs(as_features(real_ND)).mean()
  one_hot = scale * np.eye(num_classes)
  join = lambda x_ND, labels_N: np.concatenate([x_ND, one_hot[labels_N]], 1)
  return frechet_distance(
    fit(join(real_ND, real_labels_N)), fit(join(made_ND, made_labels_N))
  )
