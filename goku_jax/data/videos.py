"""Clips and stills cut at random out of a folder of videos and pictures.

Sample `i` is a function of (seed, i) and the folder: random access, unlimited
in practice. Every even sample is a still, every odd one a clip, as long as a
file has frames enough. Each place to begin, in whatever file, is as likely as
any other. Frames are left out until a clip has about the rate that was drawn:
a whole stride, so that motion stays even.

A file is one shot and is held out whole, by a hash of its path in the folder,
so that a file keeps its side when others come or go. Cut long films into shots
first (`prepare`, stage=shots), or see to it by `segment_frames`.

Letters: N samples, T H W frames, height, width.
"""

import hashlib
import operator
import pathlib
from typing import NamedTuple, SupportsIndex

import numpy as np

from goku_jax.data import hashing, tokenize, video_io
from goku_jax.typing import UserError

SPLITS = ("train", "held_out")

# What a draw is for, so that draws of one sample are independent.
_PLACE, _FPS, _Y, _X = range(4)


class Shot(NamedTuple):
  """A stretch of a file that is held out, or not, as a whole."""

  path: pathlib.Path
  first: int  # frame
  frames: int
  size: tuple[int, int]  # to which its frames are scaled
  fps: float


class Videos:
  """Random access to crops of films (Grain's data source protocol).

  Args:
    path: the folder; those below it count too.
    split: "train" or "held_out".
    seed: another seed is another, equally long, list of samples.
    num_frames: of a clip.
    fps: rates of clips, drawn evenly; a file's own rate where that is lower.
    crop: side in pixels of the square that is cut out at random.
    resolution: frames are scaled until their short side has as many pixels;
      0 leaves them as they are.
    held_out: part of the shots that is kept from training.
    segment_frames: files are cut into shots of as many frames; 0: are shots.
    num_samples: length of the list.

  Raises:
    UserError: a file that cannot be read, is smaller than the crop, or an
      empty split.
  """

  def __init__(
    self,
    path,
    split: str = "train",
    *,
    seed: int = 0,
    num_frames: int = 17,
    fps: tuple[float, ...] = (8.0, 16.0),
    crop: int = 256,
    resolution: int = 0,
    held_out: float = 0.1,
    segment_frames: int = 0,
    num_samples: int = 1 << 20,
  ):
    if split not in SPLITS:
      raise UserError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    for name, value in dict(num_frames=num_frames, crop=crop).items():
      if value < 1:
        raise UserError(f"{name}={value}: set 1 or more")
    if not fps or min(fps) <= 0:
      raise UserError(f"fps={fps}: set rates above 0")
    self.num_frames, self.crop = num_frames, crop
    self.num_samples, self._key = num_samples, (seed, SPLITS.index(split))
    self.shots = split_shots(
      _find(pathlib.Path(path), crop, resolution, segment_frames),
      split,
      held_out,
    )
    # Strides [fps, shots]: the longest that fits where the wanted one does not.
    length = np.array([shot.frames for shot in self.shots])
    rates = np.array([shot.fps for shot in self.shots])
    wanted = np.rint(rates / np.array(fps)[:, None])
    fits = (length - 1) // max(num_frames - 1, 1)
    self._strides = np.maximum(np.minimum(wanted, fits), 1).astype(int)
    # Ends of the shots in the list of all places to begin: clips, then stills.
    places = np.maximum(length - (num_frames - 1) * self._strides, 0)
    self._clip_ends, self._still_ends = places.cumsum(1), length.cumsum()
    self._has_clips = num_frames > 1 and places.any()

  def __len__(self) -> int:
    return self.num_samples

  def sizes(self) -> np.ndarray:
    """Frames, height, width and text tokens of every sample, int [N, 4]."""
    size_NC = np.full((len(self), 4), self.crop, np.int64)
    size_NC[:, 0] = 1
    if self._has_clips:
      size_NC[1::2, 0] = self.num_frames
    size_NC[:, 3] = len(tokenize.encode(""))
    return size_NC

  def __getitem__(self, index: SupportsIndex) -> dict:
    """Sample `index`: `video` [T, H, W, 3], `caption`, and where it is from."""
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"sample {index} of {len(self)}")
    draws = hashing.uniform(*self._key, index, np.arange(4))
    ends, stride, T = self._still_ends, 1, 1
    if index % 2 and self._has_clips:
      rate = int(draws[_FPS] * len(self._clip_ends))
      ends, T = self._clip_ends[rate], self.num_frames
    place = int(draws[_PLACE] * ends[-1])
    number = int(np.searchsorted(ends, place, side="right"))
    shot = self.shots[number]
    if T > 1:
      stride = int(self._strides[rate, number])
    first = shot.first + place - (int(ends[number - 1]) if number else 0)
    video = video_io.read_frames(
      shot.path, range(first, first + T * stride, stride), shot.size
    )
    H, W = shot.size
    top = int(draws[_Y] * (H - self.crop + 1))
    left = int(draws[_X] * (W - self.crop + 1))
    return {
      "video": video[:, top : top + self.crop, left : left + self.crop],
      "caption": "",
      "path": str(shot.path),
      "first": first,
      "stride": stride,
    }


def _find(folder, crop, resolution, segment_frames):
  """All shots of a folder, each with its name."""
  found = {}
  for path in video_io.list_videos(folder):
    frames, H, W, fps = video_io.probe(path)
    scale = resolution / min(H, W) if resolution else 1
    size = round(H * scale), round(W * scale)
    if min(size) < crop:
      raise UserError(
        f"{path}: frames of {size[0]}x{size[1]} have no crop of {crop}: set"
        f" crop lower, or resolution={crop} to scale them"
      )
    each = segment_frames or frames
    for first in range(0, frames, each):
      name = name_of(path, folder, first)
      length = min(each, frames - first)
      found[name] = Shot(path, first, length, size, fps)
  return found


def name_of(path, folder, first: int = 0) -> str:
  """What decides on which side a shot is: its place below the folder."""
  return f"{path.relative_to(folder).as_posix()}:{first}"


def split_shots(found: dict, split: str, held_out: float) -> list:
  """The shots of a split, by the hashes of their names.

  Args:
    found: shots by name.
    split: "train" or "held_out".
    held_out: part of all that is kept from training, 0 to below 1.

  Raises:
    UserError: there is none.
  """
  if not 0 <= held_out < 1:
    raise UserError(f"held_out={held_out} is not from 0 to below 1")
  shares = {name: _share(name) for name in found}
  kept = [
    shot
    for name, shot in found.items()
    if (shares[name] < held_out) == (split == "held_out")
  ]
  if not kept:
    low, high = min(shares.values()), max(shares.values())
    raise UserError(
      f"held_out={held_out} leaves split={split} none of {len(found)} shots:"
      f" set it above {low:.3f} and up to {high:.3f}, or to 0 to hold out none"
    )
  return kept


def _share(name) -> float:
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
