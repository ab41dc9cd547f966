"""The motion of one bright object, by formula: where it goes, and how well.

With weights w = max(grey - threshold, 0) the centroid of frame t is c_t =
sum(w p) / sum(w) and its mass m_t = sum(w). The velocity is the least-squares
slope of c_t over t in pixels a frame, and the direction is the nearest of the
seven by angle, or "still" below 0.15 pixels a frame. A clip without one bright,
compact object in nearly every frame is unreadable: its direction is wrong, and
it does not move.

  trajectory_error     residual of the linear fit in pixels, root mean square:
                       the object jumps
  mass_cv              standard deviation of m_t over its mean: it flickers
  subject_consistency  mean over frames but the first of (cos to the previous +
                       cos to the first) / 2, of crops around the centroid: it
                       stays itself. Perfect where nothing happens: read it
                       beside `dynamic_degree`
  temporal_flickering  mean over pairs of frames of (255 - mean |difference|) /
                       255, higher is steadier
  dynamic_degree       share of clips that are not still

The last three have VBench's formulas (Huang et al. 2024, arXiv:2311.17982) on
pixels instead of networks: they are not VBench's figures.

Letters: N videos, T H W frames, height, width, C colours, K side of a crop.
"""

import numpy as np

from goku_jax.data import digits

STILL_BELOW = 0.15  # pixels a frame; the slowest real motion has 0.5

# What counts as one visible object; real clips are far on the other side.
MIN_FRAMES = 0.9
_MIN_PEAK = 0.25
_MIN_COMPACT = 0.8  # part of the bright mass that lies inside the crop


def crop_side(canvas: int) -> int:
  """The side of crops in pixels: a pixel wider than a glyph on every side."""
  return digits.glyph_size(canvas) + 2


def read(videos_NTHWC: np.ndarray, crop: int) -> dict[str, np.ndarray]:
  """What is seen in each of the uint8 videos, all [N] but for two.

  `direction` (index into `digits.DIRECTIONS`) and `speed` in pixels a frame,
  -1 and 0 where the video is not `readable`; `velocity` (y, x) [N, 2] and the
  figures above, NaN where a single frame has none; `crops` [N, T, K, K] in
  [0, 1] around the centroids, and which frames are `clear` [N, T].

  Args:
    crop: K, in pixels.
  """
  grey_NTHW = videos_NTHWC.mean(-1, dtype=np.float32) / 255
  place = _locate(grey_NTHW, crop)
  crops = _crop(grey_NTHW, place["centroid"], crop)
  velocity, error = _fit(place["centroid"], place["clear"])
  readable = place["clear"].mean(1) >= MIN_FRAMES
  mass_NT = place["mass"]
  return {
    "direction": np.where(readable, _direction(velocity), -1),
    "speed": np.where(readable, np.abs(velocity).max(1), 0.0),
    "velocity": velocity,
    "readable": readable,
    "trajectory_error": error,
    "mass_cv": mass_NT.std(1) / mass_NT.mean(1),
    "subject_consistency": _consistency(crops),
    "temporal_flickering": _steadiness(videos_NTHWC),
    "crops": crops,
    "clear": place["clear"],
  }


def _locate(grey_NTHW: np.ndarray, crop: int) -> dict[str, np.ndarray]:
  """The `centroid` [N, T, 2] as (y, x), `mass` and whether `clear` [N, T]."""
  _, _, H, W = grey_NTHW.shape
  # Ten pixels a frame are this bright or brighter; specks of noise are fewer.
  quantile = 1 - min(10 / (H * W), 1)
  peak = np.quantile(grey_NTHW, quantile, axis=(1, 2, 3), keepdims=True)
  bright = np.maximum(grey_NTHW - np.maximum(0.25 * peak, 0.1), 0)
  mass = bright.sum((2, 3)) + 1e-6
  y = (bright.sum(3) * np.arange(H)).sum(2) / mass
  x = (bright.sum(2) * np.arange(W)).sum(2) / mass
  centroid = np.stack([y, x], -1)
  compact = _crop(bright, centroid, crop).sum((2, 3)) / mass
  clear = (compact >= _MIN_COMPACT) & (peak[:, :, 0, 0] >= _MIN_PEAK)
  return {"centroid": centroid, "mass": mass, "clear": clear}


def _crop(grey_NTHW, centroid_NT2, size: int) -> np.ndarray:
  """Squares around the centroids; black beyond the canvas."""
  N, T = grey_NTHW.shape[:2]
  half = size // 2
  padded = np.pad(grey_NTHW, ((0, 0), (0, 0), (half, half), (half, half)))
  # The square's middle lies between two pixels.
  corner = np.floor(centroid_NT2 + 1).astype(int)
  y_NTK, x_NTK = (corner[..., i, None] + np.arange(size) for i in (0, 1))
  n, t = np.arange(N)[:, None, None, None], np.arange(T)[:, None, None]
  return padded[n, t, y_NTK[..., :, None], x_NTK[..., None, :]]


def _fit(centroid_NT2, clear_NT) -> tuple[np.ndarray, np.ndarray]:
  """Velocity [N, 2] in pixels a frame, and the fit's error [N] in pixels."""
  w = clear_NT[..., None] / np.maximum(clear_NT.sum(1), 1)[:, None, None]
  t = np.arange(clear_NT.shape[1])[:, None]
  t = t - (w * t).sum(1, keepdims=True)
  c = centroid_NT2 - (w * centroid_NT2).sum(1, keepdims=True)
  velocity = (w * c * t).sum(1) / np.maximum((w * t * t).sum(1), 1e-6)
  error = (w * (c - velocity[:, None] * t) ** 2).sum((1, 2))
  return velocity, np.sqrt(error)


def _direction(velocity_N2: np.ndarray) -> np.ndarray:
  """The nearest direction by angle, or still."""
  moving = digits.STEPS[: digits.STILL]
  moving = moving / np.linalg.norm(moving, axis=1, keepdims=True)
  nearest = (velocity_N2 @ moving.T).argmax(1)
  speed = np.abs(velocity_N2).max(1)
  return np.where(speed < STILL_BELOW, digits.STILL, nearest)


def _consistency(crops_NTKK: np.ndarray) -> np.ndarray:
  N, T = crops_NTKK.shape[:2]
  if T < 2:
    return np.full(N, np.nan)
  x = crops_NTKK.reshape(N, T, -1)
  x = x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)
  previous, first = ((x[:, 1:] * y).sum(-1) for y in (x[:, :-1], x[:, :1]))
  # Grey is never negative, and so needs no clip at 0.
  return ((previous + first) / 2).mean(1)


def _steadiness(videos_NTHWC: np.ndarray) -> np.ndarray:
  N, T = videos_NTHWC.shape[:2]
  if T < 2:
    return np.full(N, np.nan)
  step = np.abs(np.diff(videos_NTHWC.astype(np.int16), axis=1))
  return 1 - step.mean((1, 2, 3, 4)) / 255


def score(
  seen: dict[str, np.ndarray],
  directions_N: np.ndarray,
  speeds_N: np.ndarray | None = None,
) -> dict:
  """The figures of all videos, None (null in JSON) where none has one.

  What an object does is the mean over `readable` videos; flicker is that over
  all, and a direction is right and a clip dynamic only where it is readable.

  Args:
    seen: by `read`.
    directions_N: that were asked for, -1 where none was.
    speeds_N: in pixels a frame, NaN where none was asked for.
  """
  readable = seen["readable"]
  right = seen["direction"] == directions_N
  result = {
    "num_videos": len(readable),
    "direction_accuracy": mean(right[np.asarray(directions_N) >= 0]),
    "readable": mean(readable),
    "temporal_flickering": mean(seen["temporal_flickering"]),
    "dynamic_degree": mean(seen["speed"] >= STILL_BELOW),
  }
  for name in ("trajectory_error", "mass_cv", "subject_consistency"):
    result[name] = mean(seen[name][readable])
  if speeds_N is not None:
    result["speed_mae"] = mean(np.abs(seen["speed"] - speeds_N))
  return result


def mean(values) -> float | None:
  """The mean of those that are numbers, or None of nothing."""
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else None
