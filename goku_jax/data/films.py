"""Reads films by frame number: what `decoder`'s children do for `video_io`.

A film is its bytes, as in `media`: neither its name nor what is in it opens
another file or an address. Sizes are those that FFmpeg decodes, not turned.

Letters: T frames, H W height and width.
"""

import contextlib
import fractions
import itertools
import math
from collections.abc import Iterator, Sequence

import av
import numpy as np

from goku_jax.data import media
from goku_jax.data.media import LIMITS, Limits, Unreadable

_THREADS = 4  # of a film that is read from its start; each takes memory
_held = {}  # the film being read from its start: see `kept`


def probe(path: str, limits: Limits = LIMITS) -> tuple[tuple, None]:
  """Frames, height, width and frames per second, not decoded."""
  with _opened(path, limits) as (container, stream):
    frames = stream.frames or sum(
      packet.pts is not None for packet in container.demux(stream)
    )
    if not frames or not stream.height:
      raise Unreadable("no frames")
    return (frames, stream.height, stream.width, _rate(stream)), None


def read(
  path: str,
  indices: Sequence[int],
  size: Sequence[int] | None = None,
  limits: Limits = LIMITS,
) -> tuple[None, np.ndarray]:
  """Frames by number, uint8 [T, H, W, 3]; see `video_io.read_frames`."""
  with _opened(path, limits) as (container, stream):
    rate = stream.average_rate or 1
    begin = stream.start_time or 0
    if indices[0]:
      offset = begin + int(indices[0] / rate / stream.time_base)
      container.seek(offset, stream=stream)
    H, W = size or (stream.height, stream.width)
    frames, wanted = [], iter(indices)
    index = next(wanted)
    for frame in container.decode(stream):
      media.check_size(frame.width, frame.height, limits)
      time = ((frame.pts or begin) - begin) * stream.time_base
      lasts = (frame.duration or 0) * stream.time_base or 1 / rate
      shown_until = round((time + lasts) * rate)
      if shown_until <= index:
        continue
      picture = frame.reformat(W, H, "rgb24", interpolation="BICUBIC")
      while index < shown_until:
        frames.append(picture.to_ndarray())
        index = next(wanted, None)
        if index is None:
          return None, np.stack(frames)
    raise Unreadable("cut short")


def kept(
  path: str,
  first: int,
  count: int,
  fps: float | int,
  limits: Limits = LIMITS,
) -> tuple[float, np.ndarray | None]:
  """The film's rate, and frames first to first + count of those kept.

  None at the film's end. The film stays open for the next frames: who asks for
  others than these costs the decoding from its start.

  Args:
    fps: frames are left out until so many a second remain; 0 keeps all.
  """
  frames = _held.pop((path, first, fps), None)
  if frames is None:
    _held.clear()
    frames = itertools.islice(_kept(path, fps, limits), first, None)
  found = list(itertools.islice(frames, count))
  if not found:
    return 0.0, None
  _held[path, first + len(found), fps] = frames
  return found[0][0], np.stack([frame for _, frame in found])


def _kept(path, fps, limits):
  frames = decode(path, limits)
  numbers, index = None, 0
  for i, (frame, rate) in enumerate(frames):
    numbers = numbers or spaced(float(rate), fps)
    while index < i:
      index = next(numbers)
    if i == index:
      yield float(rate), frame.to_ndarray(format="rgb24")


def decode(
  path: str, limits: Limits = LIMITS
) -> Iterator[tuple[av.VideoFrame, fractions.Fraction]]:
  """Each frame of a film as FFmpeg has it, and the frames per second."""
  with _opened(path, limits) as (container, stream):
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = _THREADS
    rate = stream.average_rate or fractions.Fraction(1)
    for frame in container.decode(stream):
      media.check_size(frame.width, frame.height, limits)
      yield frame, rate


def spaced(own: float, fps: float | int) -> Iterator[int]:
  """Numbers of the frames at or next after each 1 / fps of a second."""
  step = max(own / fps, 1.0) if fps else 1.0
  return (math.ceil(i * step) for i in itertools.count())


def _rate(stream):
  return float(stream.average_rate or 1)


@contextlib.contextmanager
def _opened(path, limits):
  with (
    media.open_file(path) as (file, head),
    media.open_video(file, head, limits, pictures=True) as opened,
  ):
    yield opened
