"""How far drawn digits are from real ones, in the features of a probe.

The figures of a toy suite: small networks and few samples, the same formulas as
those of the large ones. None is called FID: `frechet_distance` is of the probe.
It is blind to wrong labels, which `joint_distance` feels, and falls as N grows,
which `kernel_distance` does not.

Letters: N videos, T H W frames, height, width.
"""

from typing import NamedTuple

import numpy as np

from goku_jax.data import digits as data
from goku_jax.eval import digits, motion, neighbours, statistics
from goku_jax.eval.digits import Judge

CLASSES = 10
NEIGHBOURS = 5  # of a ball; fewer clips have no such figures


def training(judge: Judge, canvas: int) -> tuple[np.ndarray, np.ndarray]:
  """Features [N, 64] of the training glyphs, and the glyph of each [N].

  Each glyph stands at every quarter of a pixel: features differ by as much
  between places of one glyph as between a glyph and its nearest.
  """
  size = data.glyph_size(canvas)
  glyphs, chosen = data.load_glyphs(size)[0], data.glyph_indices("train")
  # All around it is black, however large the canvas.
  places = 2 + np.stack(np.divmod(np.arange(16), 4), -1) / 4
  videos = np.stack(
    [
      data.render(glyphs[i], place, np.zeros(2), 1, size + 4)
      for i in chosen
      for place in places
    ]
  )
  seen = motion.read(videos, judge.crop)
  return digits.features(judge, seen), np.repeat(chosen, len(places))


class Read(NamedTuple):
  """Clips as a judge reads them."""

  features: np.ndarray  # [N, 64]
  labels: np.ndarray  # digit that each shows, or was to show
  seen: dict  # by `digits.read`


def read(judge: Judge, videos, asked) -> Read:
  """What a judge reads.

  Args:
    judge: whose features count.
    videos: uint8 [T, H, W, 3] each.
    asked: of each the caption, the digit, and what else it shows.
  """
  seen = digits.read(judge, np.stack(videos))
  labels = np.array([digit for _, digit, *_ in asked])
  return Read(digits.features(judge, seen), labels, seen)


def compare(train, real: Read, made: Read) -> dict:
  """Distances of drawn clips from real held-out ones.

  Args:
    train: by `training`.
    real: held-out clips.
    made: drawn clips.

  Returns:
    dict: `frechet_distance`, `kernel_distance`; `density`, `coverage`,
    `precision`, `recall` (k = 5); `joint_distance`, of features and labels
    together; `auth_pct`, share of clips that are no copy of a training glyph,
    to be read beside `auth_pct_real`, that of the real clips.
  """
  features = real.features, made.features
  is_enough = min(map(len, features)) > NEIGHBOURS
  train_x, glyphs = train
  return {
    "frechet_distance": statistics.frechet_distance(
      *map(statistics.fit, features)
    ),
    "kernel_distance": statistics.kernel_distance(*features),
    **(neighbours.prdc(*features, k=NEIGHBOURS) if is_enough else {}),
    "joint_distance": statistics.joint_distance(*real[:2], *made[:2], CLASSES),
    "auth_pct": neighbours.auth_pct(train_x, made.features, glyphs),
    "auth_pct_real": neighbours.auth_pct(train_x, real.features, glyphs),
  }


def cas(made: Read, *, seed: int, canvas: int, **training) -> float | None:
  """Accuracy on real held-out glyphs of a probe trained on drawn clips alone.

  Ravuri & Vinyals, arXiv:1905.10887. None where nothing that was drawn is
  clear.

  Args:
    made: drawn clips.
    seed: of the probe.
    canvas: side of a clip.
    training: as of `digits.train_on`.
  """
  clear_NT = made.seen["clear"]
  if not clear_NT.any():
    return None
  crops = made.seen["crops"][clear_NT]
  labels = np.repeat(made.labels, clear_NT.sum(1))
  training |= dict(seed=seed, canvas=canvas)
  return digits.train_on(crops, labels, **training).accuracy
