"""Handwritten digits in motion: the data that comes with the package.

A real glyph (assets/README.md), enlarged to half the canvas's side, stands on a
black canvas or moves over it in a straight line, `p(t) = p(0) + t velocity` in
pixels and frames, drawn with sub-pixel bilinear weights and never leaving the
canvas. Pixels are uint8, white on black, three equal channels.

Sample `i` is a function of (seed, split, i): random access, unlimited in
practice. One glyph in five of each digit belongs to the test split, and seven
of the seventy (digit, direction) pairs never move in the training split.

Letters: N samples, T H W frames, height, width, K side of a glyph.
"""

import fractions
import functools
import hashlib
import operator
import pathlib
from typing import SupportsIndex

import numpy as np

from goku_jax.data import hashing, schema, tokenize
from goku_jax.typing import UserError

DIRECTIONS = (
  "left",
  "right",
  "up",
  "down",
  "up left",
  "down right",
  "still",
)
STEPS = np.array(  # (y, x) of each direction; diagonals use both in full
  [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (0, 0)]
)
SPEEDS = (0.5, 1.0)  # pixels a frame
SPEED_WORDS = ("slowly", "quickly")
WORDS = (
  *("zero", "one", "two", "three", "four"),
  *("five", "six", "seven", "eight", "nine"),
)
STILL = DIRECTIONS.index("still")

# (digit, direction) kept from training: each direction once, seven digits.
HELD_OUT = frozenset((3 * k % 10, k) for k in range(len(DIRECTIONS)))
ALL_PAIRS = tuple((d, k) for d in range(10) for k in range(len(DIRECTIONS)))
PAIRS = {
  "train": tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT),
  "held_out": tuple(pair for pair in ALL_PAIRS if pair in HELD_OUT),
  "all": ALL_PAIRS,
}
SPLITS = ("train", "test")

# What a draw is for, so that draws of one sample are independent.
_PAIR, _SPEED, _GLYPH, _Y, _X, _CAPTION = range(6)


def prompt(digit: int, direction: int = -1, speed: float | None = None) -> str:
  """The caption of a digit: an image for direction -1, else a clip."""
  if direction < 0:
    return f"a picture of the digit {WORDS[digit]}"
  if direction == STILL:
    return f"the digit {WORDS[digit]} stays still"
  caption = f"the digit {WORDS[digit]} moves {DIRECTIONS[direction]}"
  if speed is None:
    return caption
  return f"{caption} {SPEED_WORDS[SPEEDS.index(speed)]}"


@functools.cache
def load_glyphs(size: int = 8):
  """Glyphs [N, K, K] in [0, 1] at a size, their labels, and is-test flags."""
  path = pathlib.Path(__file__).parent / "assets" / "digits.npz"
  with np.load(path, allow_pickle=False) as file:
    images, labels = file["images"], file["labels"].astype(np.int64)
  enlarge = _hat_weights(np.linspace(0, 7, size), 8)
  glyphs = enlarge @ (images / 16.0) @ enlarge.T
  is_test = np.zeros(len(labels), bool)
  for digit in range(10):
    is_test[np.flatnonzero(labels == digit)[4::5]] = True
  return glyphs.astype(np.float32), labels, is_test


def glyph_size(canvas: int) -> int:
  """The side of a glyph in pixels: half the canvas's."""
  return canvas // 2


def glyph_indices(split: str) -> np.ndarray:
  """Which glyphs belong to a split."""
  return np.flatnonzero(load_glyphs()[2] == (split == "test"))


def render(
  glyph: np.ndarray, start: np.ndarray, step: np.ndarray, frames: int, canvas
) -> np.ndarray:
  """A glyph [K, K] on its way from `start` by `step` (y, x) a frame."""
  corner_T2 = start + np.arange(frames)[:, None] * step
  corner_2T = corner_T2.T.astype(np.float32)
  y_TKH, x_TKW = (
    _hat_weights(corner_T[:, None] + np.arange(len(glyph)), canvas)
    for corner_T in corner_2T
  )
  grey_THW = np.swapaxes(y_TKH, 1, 2) @ (glyph @ x_TKW)
  grey_THW = np.rint(grey_THW * 255).astype(np.uint8)
  return np.repeat(grey_THW[..., None], 3, axis=-1)


def _hat_weights(places: np.ndarray, size: int) -> np.ndarray:
  """Bilinear weight of each of `size` pixels for each real-valued place."""
  distance = places[..., None] - np.arange(size, dtype=places.dtype)
  return np.maximum(0, 1 - np.abs(distance))


class Digits:
  """Random access to still and moving digits (Grain's data source protocol).

  A sample's class is its `digit`, one of `num_classes`.

  Args:
    split: whose glyphs, "train" or "test".
    seed: another seed is another, equally long, list of samples.
    num_frames: of a clip, 4k+1; the fastest clip must fit on the canvas.
    canvas: height and width in pixels.
    num_samples: length of the list; the samples before do not depend on it.
    image_share: part of single images; 0.5 makes every even sample one.
    pairs: (digit, direction) of the clips: "train", "held_out" or "all".
  """

  classes, num_classes = WORDS, len(WORDS)

  def __init__(
    self,
    split: str = "train",
    *,
    seed: int = 0,
    num_frames: int = 17,
    canvas: int = 32,
    num_samples: int = 1 << 17,
    image_share: float = 0.5,
    pairs: str = "train",
  ):
    _check_choice("split", split, SPLITS)
    _check_choice("pairs", pairs, PAIRS)
    if split == "train" and pairs != "train":
      raise UserError(
        f"the train split never shows held-out pairs: set split=test with "
        f"pairs={pairs}"
      )
    if num_samples < 1:
      raise UserError(f"num_samples={num_samples}: set 1 or more")
    if not 0 <= image_share <= 1:
      raise UserError(f"image_share={image_share} is not between 0 and 1")
    schema.check_frames(num_frames)
    size, span = glyph_size(canvas), int(max(SPEEDS) * (num_frames - 1))
    if size < 8 or size + span > canvas:
      needed = max(16, 2 * span)
      shorter = f", or num_frames={(canvas - size) // 4 * 4 + 1} or less"
      raise UserError(
        f"a clip of num_frames={num_frames} needs a canvas of {needed} pixels "
        f"and canvas={canvas}: set {needed} or more"
        + (shorter if size >= 8 else "")
      )
    self.split, self.seed, self.num_frames = split, seed, num_frames
    self.canvas, self.num_samples = canvas, num_samples
    self._share = fractions.Fraction(image_share).limit_denominator(1000)
    self._pairs = np.array(PAIRS[pairs])
    self._key = (seed, SPLITS.index(split))
    self._glyphs, labels, is_test = load_glyphs(size)
    in_split = is_test == (split == "test")
    self._by_digit = [
      np.flatnonzero(in_split & (labels == digit)) for digit in range(10)
    ]

  def __len__(self) -> int:
    return self.num_samples

  def labels(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """What samples `indices` [N] show, without drawing them.

    `digit`, `direction` (-1 for an image), `speed`, `glyph`, `says_speed`,
    and the `start` (y, x) of the glyph's corner.
    """
    i = np.asarray(indices)
    draws_N6 = hashing.uniform(*self._key, i[:, None], np.arange(6))
    draw = lambda purpose: draws_N6[:, purpose]
    number = lambda n, purpose: (draw(purpose) * n).astype(np.int64)
    top, bottom = self._share.numerator, self._share.denominator
    # Exact over any window: ceil(share i) grows by one at each image.
    is_image = -(-(i + 1) * top // bottom) + (-i * top // bottom) == 1
    pair = self._pairs[number(len(self._pairs), _PAIR)]
    digit = np.where(is_image, number(10, _PAIR), pair[:, 0])
    direction = np.where(is_image, -1, pair[:, 1])
    moves = (direction >= 0) & (direction != STILL)
    speed = np.where(moves, np.array(SPEEDS)[number(len(SPEEDS), _SPEED)], 0)
    glyph_draw = draw(_GLYPH)
    glyph = np.zeros(len(i), np.int64)
    for d in np.unique(digit):
      of_digit, where = self._by_digit[d], digit == d
      glyph[where] = of_digit[
        (glyph_draw[where] * len(of_digit)).astype(np.int64)
      ]
    step = STEPS[direction] * speed[:, None]
    span = step * (self.num_frames - 1)
    low = np.maximum(0, -span)
    high = self.canvas - glyph_size(self.canvas) - np.maximum(0, span)
    place = np.stack([draw(_Y), draw(_X)], axis=-1)
    return {
      "digit": digit,
      "direction": direction,
      "speed": speed,
      "glyph": glyph,
      "says_speed": moves & (draw(_CAPTION) >= 1 / 3),
      "start": low + place * (high - low),
    }

  def sizes(self) -> np.ndarray:
    """Frames, height, width and text tokens of every sample, int [N, 4]."""
    label = self.labels(np.arange(len(self)))
    says = np.where(label["says_speed"], 1 + (label["speed"] == SPEEDS[1]), 0)
    size_NC = np.full((len(self), 4), self.canvas, np.int64)
    size_NC[:, 0] = np.where(label["direction"] < 0, 1, self.num_frames)
    size_NC[:, 3] = _caption_tokens()[label["digit"], label["direction"], says]
    return size_NC

  def __getitem__(self, index: SupportsIndex) -> dict:
    """Sample `index`: `video` [T, H, W, 3], `caption` and what it shows."""
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"sample {index} of {len(self)}")
    label = {k: v[0] for k, v in self.labels(np.array([index])).items()}
    digit, direction = int(label["digit"]), int(label["direction"])
    speed = float(label["speed"])
    video = render(
      self._glyphs[label["glyph"]],
      label["start"],
      STEPS[direction] * speed,
      1 if direction < 0 else self.num_frames,
      self.canvas,
    )
    caption = prompt(digit, direction, speed if label["says_speed"] else None)
    return {
      "video": video,
      "caption": caption,
      "digit": digit,
      "class": digit,
      "direction": direction,
      "speed": speed,
      "glyph": int(label["glyph"]),
    }

  def key(self, index: int) -> str:
    """The name of a sample among what `prepare` reads."""
    return f"digit {index}"

  def cut(self, index: int) -> list[dict]:
    """The sample as the one clip of an item (`data/clips.py`)."""
    sample = self[index]
    caption = sample.pop("caption")
    return [{**sample, "captions": (caption,), "about": {}}]

  def digest(self) -> str:
    """What tells these samples from others: they are a function of it."""
    settings = (*self._key, self.num_frames, self.canvas, self.num_samples)
    text = repr((*settings, self._share, self._pairs.tolist()))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _caption_tokens() -> np.ndarray:
  """Tokens of each prompt: digit, direction (-1 last), no speed or which."""
  spoken = (None, *SPEEDS)
  directions = (*range(len(DIRECTIONS)), -1)
  return np.array(
    [
      [
        [len(tokenize.encode(prompt(d, k, speed))) for speed in spoken]
        for k in directions
      ]
      for d in range(10)
    ]
  )


def _check_choice(name: str, value: str, choices):
  if value not in choices:
    known = ", ".join(choices)
    raise UserError(f"{name}={value!r} is not one of {known}")
