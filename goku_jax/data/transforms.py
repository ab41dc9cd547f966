"""Clips as a model takes them: pixels checked, frames and sides fitted.

Letters: T frames, H W height and width, C = 3 channels.
"""

import numpy as np

from goku_jax.typing import UserError


def check_pixels(video_THWC: np.ndarray, name) -> np.ndarray:
  """The clip in uint8; float pixels are read as in [-1, 1], and rounded.

  Raises:
    UserError: not a clip [T, H, W, 3] of such pixels; `name` says whose.
  """
  kind, shape = video_THWC.dtype, video_THWC.shape
  if video_THWC.ndim != 4 or shape[-1] != 3 or not video_THWC.size:
    raise UserError(f"{name}: a video is [T, H, W, 3], not {list(shape)}")
  if kind == np.uint8:
    return video_THWC
  if not np.issubdtype(kind, np.floating):
    raise UserError(f"{name}: pixels are uint8 or float in [-1, 1], not {kind}")
  if np.isnan(video_THWC).any():
    raise UserError(f"{name}: there are pixels that are NaN")
  low, high = float(video_THWC.min()), float(video_THWC.max())
  if low < -1 or high > 1:
    raise UserError(
      f"{name}: {kind} pixels from {low:g} to {high:g}; float is in [-1, 1]"
    )
  return np.round(video_THWC * 127.5 + 127.5).astype(np.uint8)
