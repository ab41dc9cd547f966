"""Clips and pictures cut out of items, of the shapes that a model takes.

A clip has 4k+1 frames at the wanted rate, or at the file's own where that is
lower: frames are left out, and repeated only where they last unevenly. Its
sides are multiples of `multiple` (the autoencoder's stride times the patch),
nearly in the file's proportions, as large as the budget of pixels allows and
never larger than the file's: what is over is cut off evenly. A file of one
frame is a picture.

Letters: T frames, H W height and width.
"""

import concurrent.futures
import hashlib
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from goku_jax.data import hashing, schema
from goku_jax.data.media import Unreadable
from goku_jax.typing import UserError

CAPTIONS = ("required", "optional")
_BEGIN, _FLIP = range(2)  # what a draw is for


class Window(NamedTuple):
  """A stretch of an item that becomes a clip, or one frame of it."""

  item: int
  begin: float  # seconds
  frames: int  # 4k+1
  fps: float  # of the clip; 0 of a picture
  size: tuple[int, int]  # height, width
  slack: float  # seconds by which it could begin earlier or later


class Clips:
  """The clips of a list of items.

  Args:
    items: a source of `data/items.py`.
    decoder: a `data.decoder.Decoder`.
    fps: wanted frames per second; 0: each file's own.
    min_frames: of a clip, 4k+1; a file gives the longest clip that it has.
    max_frames: of a clip.
    step_frames: from one length to the next; few lengths compile few encoders.
    pictures: whether files of one frame are taken.
    pixels: most of a frame, height times width.
    multiple: of the sides.
    clips_per_file: at most, evenly over the file.
    captions: "required" leaves out what has none; "optional" takes "".
    motion_score: whether "Motion score: 4.2." ends a caption, as in the paper,
      section 4.3, where a score of that name came along.
  """

  def __init__(
    self,
    items,
    decoder,
    *,
    fps: float,
    min_frames: int,
    max_frames: int,
    step_frames: int,
    pictures: bool,
    pixels: int,
    multiple: int,
    clips_per_file: int,
    captions: str,
    motion_score: bool,
  ):
    for frames in (min_frames, min_frames + step_frames):
      schema.check_frames(frames)
    if captions not in CAPTIONS:
      raise UserError(f"captions={captions!r} is not one of {CAPTIONS}")
    if not 5 <= min_frames <= max_frames or step_frames < 4:
      raise UserError(
        f"min_frames={min_frames}, max_frames={max_frames}, step_frames="
        f"{step_frames} give no clip: set 5 or more, no less than that, 4k"
      )
    if fps < 0 or clips_per_file < 1 or multiple < 1:
      raise UserError(
        f"fps={fps}, clips_per_file={clips_per_file}, multiple={multiple} give"
        " no clip: set 0 or more, 1 or more, 1 or more"
      )
    if pixels < multiple**2:
      raise UserError(
        f"pixels={pixels} hold no frame of {multiple}x{multiple}: set more"
      )
    self.items, self.decoder = items, decoder
    self.classes, self.num_classes = items.classes, max(1, len(items.classes))
    self.fps, self.pictures = fps, pictures
    self.num_frames = tuple(range(min_frames, max_frames + 1, step_frames))
    self.pixels, self.multiple = pixels, multiple
    self.clips_per_file, self.captions = clips_per_file, captions
    self.motion_score = motion_score

  def __len__(self) -> int:
    return len(self.items)

  def key(self, index: int) -> str:
    """The name of an item."""
    return self.items.key(index)

  def digest(self) -> str:
    """What tells these clips from others: a function of items and settings."""
    settings = (self.fps, self.num_frames, self.pictures, self.pixels)
    settings += (
      self.multiple,
      self.clips_per_file,
      self.captions,
      self.motion_score,
    )
    text = repr((self.items.digest(), *settings))
    return hashlib.sha256(text.encode()).hexdigest()

  def cut(self, index: int) -> list[dict]:
    """All clips of an item, each as `read` gives it.

    Raises:
      Unreadable: the item gives none; the message has the reason.
    """
    item = self._usable(index)
    return [self._read(item, window) for window in self._windows(index, item)]

  def look(self, index: int) -> tuple[list[Window], list[str]]:
    """Where the clips of an item lie, and its captions; nothing is decoded.

    Raises:
      Unreadable: as `cut`.
    """
    item = self._usable(index)
    return self._windows(index, item), self._captions(item)

  def read(self, window: Window, begin=None) -> dict:
    """`video` uint8 [T, H, W, 3], `captions`, `class` and `about`, a dict."""
    item = self._usable(window.item)
    return self._read(
      item, window if begin is None else window._replace(begin=begin)
    )

  def _usable(self, index):
    item = self.items[index]
    if item.problem:
      raise Unreadable(item.problem)
    if self.captions == "required" and not item.captions:
      raise Unreadable("no caption")
    return item

  def _windows(self, index, item):
    probe = self.decoder.probe(item.media)
    size = fit(probe.height, probe.width, self.pixels, self.multiple)
    if not size:
      raise Unreadable(
        f"{probe.height}x{probe.width} pixels, smaller than"
        f" {self.multiple}x{self.multiple}"
      )
    if probe.frames == 1:
      if not self.pictures:
        raise Unreadable("one frame, and pictures=false")
      return [Window(index, 0.0, 1, 0.0, size, 0.0)]
    fps = min(self.fps or probe.fps, probe.fps)
    # Rates and lengths are rounded in files: a hundredth of a frame is none.
    count = math.floor(probe.seconds * fps + 0.01)
    lengths = [n for n in self.num_frames if n <= count]
    if not lengths:
      raise Unreadable(
        f"{count} frames at {fps:.3g} a second, and min_frames is"
        f" {self.num_frames[0]}"
      )
    frames = lengths[-1]
    number = min(self.clips_per_file, count // frames)
    free = (count - frames) / fps
    each = free - (number - 1) * frames / fps  # that no clip needs
    return [
      Window(
        index,
        # A clip in the middle of an even share of the file.
        k * frames / fps + each * (k + 0.5) / number,
        frames,
        fps,
        size,
        each / number / 2,
      )
      for k in range(number)
    ]

  def _captions(self, item):
    score = item.scores.get("motion_score") if self.motion_score else None
    if score is None:
      return list(item.captions) or [""]
    return [add_motion_score(c, score) for c in item.captions or ("",)]

  def _class_of(self, item):
    label = int(item.scores.get(self.items.label, -1))
    return label if 0 <= label < self.num_classes else -1

  def _read(self, item, window):
    times = [
      window.begin + (i / window.fps if i else 0) for i in range(window.frames)
    ]
    video = self.decoder.read(item.media, times, window.size)
    return {
      "video": video,
      "captions": tuple(self._captions(item)),
      "class": self._class_of(item),
      "about": {
        "key": item.key,
        "begin": round(window.begin, 6),
        "fps": round(window.fps, 6),
        "seconds": window.frames / window.fps if window.fps else 0.0,
        "scores": item.scores,
      },
    }


class Windows:
  """Raw samples for training without prepared latents: random access.

  Args:
    clips: what they are cut from.
    seed: of the draws.
    augment: whether a clip begins elsewhere at each visit, as far as it may
      without meeting its neighbours.
    flip: probability of a mirror image; wrong where captions tell sides.
    count: text tokens of a caption.
    threads: items that are probed at once.
    progress: called with the number of items probed.
  """

  def __init__(
    self,
    clips: Clips,
    *,
    seed: int,
    augment: bool,
    flip: float,
    count: Callable[[str], int],
    threads: int,
    progress=None,
  ):
    if not 0 <= flip <= 1:
      raise UserError(f"flip={flip} is not between 0 and 1")
    self.clips, self._seed = clips, seed
    self._augment, self._flip, self._count = augment, flip, count
    self.num_classes = clips.num_classes
    self.windows, self.dropped, self._texts = [], [], []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      for i, found in enumerate(pool.map(self._find, range(len(clips)))):
        windows, text, reason = found
        self.windows += windows
        self._texts += [text] * len(windows)
        if reason:
          self.dropped.append({"key": clips.key(i), "reason": reason})
        if progress:
          progress(i + 1)

  def _find(self, index):
    try:
      windows, captions = self.clips.look(index)
    except Unreadable as error:
      return [], 0, str(error)
    return windows, max(map(self._count, captions)), None

  def __len__(self) -> int:
    return len(self.windows)

  def sizes(self) -> np.ndarray:
    """Frames, height, width and text tokens of every sample, int [n, 4]."""
    rows = [
      (window.frames, *window.size, text)
      for window, text in zip(self.windows, self._texts, strict=True)
    ]
    return np.array(rows, np.int64).reshape(-1, 4)

  def key(self, index: int) -> str:
    """The item of a sample, and where in it."""
    window = self.windows[index]
    return f"{self.clips.key(window.item)} at {window.begin:.2f} s"

  def digest(self) -> str:
    """Of `Clips`, and of what was found: a file may be unwell for once."""
    text = repr((self.clips.digest(), self.windows, self._texts))
    return hashlib.sha256(text.encode()).hexdigest()

  def read(self, index: int, visit: int) -> dict:
    """A clip as at one visit, as `Clips.read` gives it.

    Raises:
      Unreadable: its frames cannot be read.
    """
    window = self.windows[index]
    draw = lambda what: hashing.uniform(self._seed, what, index, visit)[0]
    begin = window.begin
    if self._augment:
      begin += (2 * draw(_BEGIN) - 1) * window.slack
    clip = self.clips.read(window, begin)
    if draw(_FLIP) < self._flip:
      clip["video"] = np.ascontiguousarray(clip["video"][:, :, ::-1])
    return clip


def fit(height: int, width: int, pixels: int, multiple: int):
  """Height and width of a clip of a file of this size, None if too small.

  Of all sizes that the file covers without being enlarged and the budget
  allows, the one that keeps most: the share of the picture that is not cut off
  times the pixels that it is shown with.
  """
  scale = min(1.0, math.sqrt(pixels / (height * width)))
  sides = [
    [near * multiple for near in (int(x), int(x) + 1)]
    for x in (height * scale / multiple, width * scale / multiple)
  ]
  sizes = [
    (h, w)
    for h, w in itertools.product(*sides)
    if 0 < h <= height and 0 < w <= width and h * w <= pixels
  ]
  if not sizes:  # long and thin: one side at its least
    thin = multiple * min(pixels // multiple**2, max(height, width) // multiple)
    size = (multiple, thin) if width >= height else (thin, multiple)
    return size if thin and min(height, width) >= multiple else None

  def kept(size):
    ratio = size[0] * width / (size[1] * height)
    return size[0] * size[1] * min(ratio, 1 / ratio)

  return max(sizes, key=lambda size: (kept(size), size))


def add_motion_score(caption: str, score: float) -> str:
  """A caption that ends as those of training do; score as curation gave it."""
  return f"{caption} Motion score: {score:.1f}.".strip()
