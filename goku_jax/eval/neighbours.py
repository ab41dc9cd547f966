"""Figures of nearest neighbours in feature space.

Around every sample lies a ball whose radius is the distance to its k-th nearest
neighbour in its own set.

  precision  share of generated samples in the ball of some real one
  recall     share of real samples in the ball of some generated one
             (Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 2)
  density    real balls that a generated sample lies in, over k, on average
  coverage   share of real balls with a generated sample inside
             (Naeem et al. 2020, arXiv:2002.09797, section 3)
  AuthPct    share of generated samples that are farther from their nearest
             training sample than that one is from another training sample
             (Alaa et al. 2022, arXiv:2102.08921)

Distances are computed in blocks of rows: no N x M array is ever held.

Letters: N real or training samples, M generated ones, D features.
"""

import numpy as np

from goku_jax.eval import statistics
from goku_jax.typing import UserError

BLOCK = 1000  # rows, against all columns: 200 MB a block of 50,000 in float32
DTYPES = ("float16", "float32", "float64")


def precision_recall(
  real_ND: np.ndarray,
  made_MD: np.ndarray,
  *,
  k: int = 3,
  dtype: str = "float16",
) -> dict[str, float]:
  """`precision` and `recall` as ADM's evaluator has them: a ball is closed.

  Args:
    dtype: of distances. The evaluator's are "float16", or float32 for a whole
      block in which one overflows; its blocks are 10,000 by 10,000, ours 1,000
      rows, and sums are rounded from float32.
  """
  found = _balls(real_ND, made_MD, k, np.less_equal, dtype)
  return {name: found[name] for name in ("precision", "recall")}


def prdc(
  real_ND: np.ndarray, made_MD: np.ndarray, *, k: int = 5
) -> dict[str, float]:
  """`precision`, `recall`, `density`, `coverage`: open balls, in float64."""
  return _balls(real_ND, made_MD, k, np.less, "float64")


def auth_pct(
  train_ND: np.ndarray,
  made_MD: np.ndarray,
  example_N: np.ndarray | None = None,
) -> float:
  """The share of generated samples that are no copies; 0 is all copied.

  Read it beside the value of held-out real samples, not beside 1.

  Args:
    example_N: number of the training example that each training sample is a
      view of: how far it is from another view of its own says nothing of
      copying, and does not count. By default each is an example.
  """
  train_ND, made_MD = _pair(train_ND, made_MD)
  if example_N is None:
    example_N = np.arange(len(train_ND))
  if len(np.unique(example_N)) < 2:
    raise UserError("one training example has no neighbour: read more")
  authentic = 0
  for rows in _blocks(made_MD):
    distance = _squared_distances(made_MD[rows], train_ND, "float64")
    nearest = distance.argmin(1)
    between = _squared_distances(train_ND[nearest], train_ND, "float64")
    between[example_N[nearest, None] == example_N] = np.inf
    authentic += (distance.min(1) > between.min(1)).sum()
  return float(authentic / len(made_MD))


def _balls(real_ND, made_MD, k, inside, dtype) -> dict[str, float]:
  if dtype not in DTYPES:
    raise UserError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
  real_ND, made_MD = _pair(real_ND, made_MD)
  real_radius_N, made_radius_M = (
    _radii(x, k, dtype) for x in (real_ND, made_MD)
  )
  balls_M = np.zeros(len(made_MD), np.int64)
  covered = recalled = 0
  for rows in _blocks(real_ND):
    distance = _squared_distances(real_ND[rows], made_MD, dtype)
    in_real = inside(distance, real_radius_N[rows, None])
    balls_M += in_real.sum(0)
    covered += in_real.any(1).sum()
    recalled += inside(distance, made_radius_M).any(1).sum()
  return {
    "precision": float((balls_M > 0).mean()),
    "recall": float(recalled / len(real_ND)),
    "density": float(balls_M.mean() / k),
    "coverage": float(covered / len(real_ND)),
  }


def _pair(real_ND, made_MD):
  pair = statistics.as_features(real_ND), statistics.as_features(made_MD)
  if pair[0].shape[1] != pair[1].shape[1]:
    raise UserError(
      f"features of {pair[0].shape[1]} and {pair[1].shape[1]} numbers: compare"
      " those of one network and layer"
    )
  if not len(made_MD):
    raise UserError("no generated samples: make some")
  return pair


def _radii(x_ND, k, dtype) -> np.ndarray:
  """Squared distance of each sample to its k-th nearest, itself left out."""
  if len(x_ND) <= k:
    raise UserError(
      f"k={k} neighbours of {len(x_ND)} samples: make more samples"
    )
  parts = [
    # The sample itself is the nearest, at 0.
    np.partition(_squared_distances(x_ND[rows], x_ND, dtype), k, axis=1)[:, k]
    for rows in _blocks(x_ND)
  ]
  return np.concatenate(parts)


def _blocks(x_ND):
  return [slice(i, i + BLOCK) for i in range(0, len(x_ND), BLOCK)]


def _squared_distances(one_ND, two_MD, dtype) -> np.ndarray:
  """Squared distances [N, M]; of equals exactly 0 in float64."""
  if dtype == "float16":
    with np.errstate(over="ignore", invalid="ignore"):
      half = [x.astype(np.float16).astype(np.float32) for x in (one_ND, two_MD)]
      distance = _expand(*half, np.float16)
    if np.isfinite(distance).all():
      return distance.astype(np.float32)
    dtype = "float32"
  if dtype == "float32":
    single = [x.astype(np.float32) for x in (one_ND, two_MD)]
    return _expand(*single, np.float32)
  distance = _expand(one_ND, two_MD, np.float64)
  # What cancellation leaves of a copy is no distance.
  size = np.square(one_ND).sum(1)[:, None] + np.square(two_MD).sum(1)
  distance[distance <= 1e-13 * size] = 0
  return distance


def _expand(one_ND, two_MD, dtype):
  """|x|^2 - 2 x.y + |y|^2, each term rounded to `dtype`."""
  norm_N, norm_M = (np.square(x).sum(1).astype(dtype) for x in (one_ND, two_MD))
  product = (one_ND @ two_MD.T).astype(dtype)
  return np.maximum(norm_N[:, None] - 2 * product + norm_M, dtype(0))
