"""Clips as a model takes them: pixels checked, frames and sides fitted.

Letters: T frames, H W height and width, C = 3 channels.
"""

import numpy as np
from PIL import Image

from goku_jax.typing import UserError

REST = ("trim", "refuse")


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


def resize_to_cover(
  video_THWC: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
  """A uint8 clip scaled until it just covers `size` (height, width).

  With `crop_centre` after it, what torchvision's Resize and CenterCrop do:
  bilinear, antialiased, the longer side rounded down.
  """
  _, H, W, _ = video_THWC.shape
  height, width = size
  if height * W >= width * H:
    scaled = height, max(height * W // H, width)
  else:
    scaled = max(width * H // W, height), width
  if scaled != (H, W):
    video_THWC = np.stack(
      [
        Image.fromarray(frame).resize(scaled[::-1], Image.Resampling.BILINEAR)
        for frame in video_THWC
      ]
    )
  return video_THWC


def crop_centre(
  video_THWC: np.ndarray, size: tuple[int, int], name
) -> np.ndarray:
  """The centre of a clip, of `size` (height, width); `name` is of the clip."""
  _, H, W, _ = video_THWC.shape
  height, width = size
  if height > H or width > W:
    raise UserError(
      f"{name}: frames of {H}x{W} have no centre of {height}x{width}; set a"
      " smaller size, or scale=true"
    )
  top, left = round((H - height) / 2), round((W - width) / 2)
  return video_THWC[:, top : top + height, left : left + width]


def trim_frames(
  video_THWC: np.ndarray, stride: int, rest: str, name
) -> np.ndarray:
  """The first `stride` k + 1 frames, for the largest k there is.

  Args:
    rest: what happens to frames beyond those: "trim" or "refuse".
    name: says whose frames are refused.
  """
  T = len(video_THWC)
  kept = (T - 1) // stride * stride + 1
  if kept < T and rest == "refuse":
    raise UserError(
      f"{name}: a clip of {T} frames is not one of {stride}k+1; frames=trim"
      f" keeps {kept}"
    )
  return video_THWC[:kept]


def pad_sides(video_THWC: np.ndarray, sides) -> np.ndarray:
  """The clip with its last row and column repeated up to multiples of `sides`.

  `sides` is height and width; `[:, :H, :W]` takes the copies off again.
  """
  _, H, W, _ = video_THWC.shape
  down, right = -H % sides[0], -W % sides[1]
  return np.pad(video_THWC, ((0, 0), (0, down), (0, right), (0, 0)), "edge")
