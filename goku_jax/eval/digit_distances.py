"""How far drawn digits are from real ones, in the features of a probe.

The figures of a toy suite: small networks and few samples, the same formulas as
those of the large ones. None is called FID: `frechet_distance` is of the probe.
It is blind to wrong labels, which `joint_distance` feels, and falls as N grows,
which `kernel_distance` does not.

Letters: N videos, T H W frames, height, width.
"""

import numpy as np

from goku_jax.eval import digits, neighbours, statistics
from goku_jax.eval.digits import Judge

CLASSES = 10
NEIGHBOURS = 5  # of a ball; fewer clips have no such figures


def measure(judge: Judge, real, made, seed: int, canvas: int) -> dict:
  """Distances of drawn clips from real held-out ones.

  Args:
    judge: whose features count.
    real: clips uint8 [T, H, W, 3], and of each (caption, digit, direction,
      speed) that it shows.
    made: the same of drawn clips, and what they were to show.
    seed: of the probe that `cas` trains.
    canvas: side of a clip.

  Returns:
    dict: `frechet_distance`, `kernel_distance`; `density`, `coverage`,
    `precision`, `recall` (k = 5); `joint_distance`, of features and labels
    together; `auth_pct`, of clips that are no copy of a training glyph;
    `cas`, the accuracy on real held-out glyphs of a probe trained on drawn ones
    alone (Ravuri & Vinyals, arXiv:1905.10887).
  """
  (real_x, real_labels, _), (made_x, made_labels, seen) = (
    _read(judge, *pair) for pair in (real, made)
  )
  fit = statistics.fit
  is_enough = min(len(real_x), len(made_x)) > NEIGHBOURS
  crops, _ = digits.glyph_crops("train", seed, canvas)
  train = digits.features(judge, _still(crops))
  return {
    "frechet_distance": statistics.frechet_distance(fit(real_x), fit(made_x)),
    "kernel_distance": statistics.kernel_distance(real_x, made_x),
    **(neighbours.prdc(real_x, made_x, k=NEIGHBOURS) if is_enough else {}),
    "joint_distance": statistics.joint_distance(
      real_x, real_labels, made_x, made_labels, CLASSES
    ),
    "auth_pct": neighbours.auth_pct(train, made_x),
    "cas": _cas(seen, made_labels, seed, canvas),
  }


def _read(judge, videos, asked):
  seen = digits.read(judge, np.stack(videos))
  labels = np.array([digit for _, digit, *_ in asked])
  return digits.features(judge, seen), labels, seen


def _still(crops_NHW) -> dict:
  """Crops as `motion.read` would have them, one frame each."""
  return {
    "crops": crops_NHW[:, None],
    "clear": np.ones((len(crops_NHW), 1), bool),
  }


def _cas(seen, labels, seed, canvas) -> float | None:
  """None where nothing that was drawn is clear."""
  clear_NT = seen["clear"]
  if not clear_NT.any():
    return None
  crops = seen["crops"][clear_NT]
  labels = np.repeat(labels, clear_NT.sum(1))
  return digits.train_on(crops, labels, seed=seed, canvas=canvas).accuracy
