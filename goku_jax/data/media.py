"""Probes and reads one picture or video, whatever its name says it is.

The first bytes tell the kind. FFmpeg is handed the open file, a list of the
formats it may take it for and no protocol, so nothing inside a file makes it
open another file or an address. `decoder` does the same in processes that can
be killed, which files from strangers want.

Sizes and times are of what a player shows: turned and mirrored as the file
says, its pixels square, time 0 at the first frame. What is transparent becomes
white. An animated PNG or WebP counts as its first frame, an array saved by
NumPy (uint8 [T, H, W, 3] or [H, W, 3]) as frames at 8 a second. Interlaced
frames stay woven, and HDR is not tone-mapped.

Letters: T frames, H W height and width.
"""

import contextlib
import fractions
import io
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from goku_jax.data.views import View

_OPTIONS = {
  "format_whitelist": "mov,matroska,avi,gif,mpeg,mpegts",
  "protocol_whitelist": "none",
}
_MAX_STREAMS = 64
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_SIGNATURES = (b"\x1aE\xdf\xa3", b"RIFF", b"GIF8", b"\0\0\1\xba")
_NPY = b"\x93NUMPY"
_NPY_FPS = 8.0
_EXIF_ORIENTATION = 0x0112


class Unreadable(ValueError):  # noqa: N818
  """A file that gives no frames; the message is the reason, in a few words."""


class Limits(NamedTuple):
  """What a file may hold at most."""

  pixels: int = 2**26  # of a frame
  frames: int = 2**20


LIMITS = Limits()


class Probe(NamedTuple):
  """What a file shows; of a picture 1 frame, with `fps` and `seconds` 0."""

  frames: int
  height: int
  width: int
  fps: float  # frames over seconds, a mean where frames last unevenly
  seconds: float


def probe(media: str | bytes, limits: Limits = LIMITS) -> Probe:
  """What a file, given by path or as bytes, shows.

  One frame of a video is decoded, and all its packets are read.

  Raises:
    Unreadable: it shows nothing, is cut short, or holds more than `limits`.
  """
  with open_file(media) as (file, head):
    if picture := _picture(file, head, limits):
      width, height = picture.size
      if picture.getexif().get(_EXIF_ORIENTATION, 1) > 4:
        width, height = height, width
      return Probe(1, height, width, 0.0, 0.0)
    if head.startswith(_NPY):
      T, H, W, _ = _array(file, limits).shape
      return Probe(T, H, W, _NPY_FPS, T / _NPY_FPS)
    with open_video(file, head, limits) as (container, stream):
      return _probe_video(container, stream, limits)


def read(
  media: str | bytes,
  times: Sequence[float],
  size: tuple[int, int],
  limits: Limits = LIMITS,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """The frames nearest to some times, uint8 [T, H, W, 3].

  They are scaled until they just cover `size`, and cut to it evenly. Decoding
  begins at the last key frame before the first of them.

  Args:
    media: path or bytes.
    times: in seconds from the first frame, rising; of two frames equally near
      the earlier counts.
    size: height and width.
    limits: of the file.
    out: where they are put.

  Raises:
    Unreadable: as `probe`; or a time lies beyond the last frame by more than
      that lasts, or a frame on the way is damaged.
  """
  check_times(times)
  if out is None:
    out = np.empty((len(times), *size, 3), np.uint8)
  with open_file(media) as (file, head), contextlib.ExitStack() as stack:
    if picture := _picture(file, head, limits):
      shown = [(0.0, 0.0, ImageOps.exif_transpose(picture))]
      put = _put_image
    elif head.startswith(_NPY):
      images = map(Image.fromarray, _array(file, limits))
      shown = ((i / _NPY_FPS, 1 / _NPY_FPS, im) for i, im in enumerate(images))
      put = _put_image
    else:
      opened = open_video(file, head, limits)
      container, stream = stack.enter_context(opened)
      frames = container.decode(stream)
      first = _checked(next(frames, None), limits)
      shown = _shown(times[0], container, stream, first, frames, limits)
      put = View(first, stream).put
    before = None
    for i, frame in enumerate(_nearest(shown, times)):
      if frame is before:
        out[i] = out[i - 1]
      else:
        put(frame, out[i])
      before = frame
  return out


def check_times(times: Sequence[float]) -> None:
  """Raises ValueError where `read` could not go by them."""
  if not len(times) or times[0] < 0 or any(np.diff(times) < 0):
    raise ValueError(f"times={times} do not rise from 0 or more")


@contextlib.contextmanager
def open_file(media: str | bytes):
  """The file and its first bytes; whatever goes wrong becomes a reason."""
  is_bytes = isinstance(media, bytes)
  try:
    with io.BytesIO(media) if is_bytes else open(media, "rb") as file:
      head = file.read(16)
      if not head:
        raise Unreadable("empty file")
      file.seek(0)
      yield file, head
  except (Unreadable, MemoryError):
    raise
  except av.FFmpegError as error:
    raise Unreadable(f"cut short or damaged ({error.strerror})") from error
  except Exception as error:  # libraries raise anything at a damaged file
    reason = getattr(error, "strerror", None) or str(error)
    raise Unreadable(reason or type(error).__name__) from error


def check_size(width: int, height: int, limits: Limits) -> None:
  """Raises Unreadable for a frame of more pixels than the limits."""
  if width * height > limits.pixels:
    raise Unreadable(
      f"{width}x{height} pixels, more than {limits.pixels} a frame"
    )


def _check_count(frames, limits):
  if frames > limits.frames:
    raise Unreadable(f"more than {limits.frames} frames")


def _picture(file, head, limits):
  """The picture in a file, its header read; None where it is none."""
  # Image.open would refuse a large one before it says how large.
  if head.startswith(b"\x89PNG\r\n\x1a\n"):
    image = PngImageFile(file)
  elif head.startswith(b"\xff\xd8\xff"):
    image = JpegImageFile(file)
  elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
    image = WebPImageFile(file)
  else:
    return None
  check_size(*image.size, limits)
  return image


def _put_image(image, out):
  """Scales and cuts a picture of any mode to `out`."""
  if image.mode.startswith("I"):  # 16 bits of grey
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  size = out.shape[1::-1]
  out[:] = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC)


def _array(file, limits):
  array = np.load(file, allow_pickle=False)
  if array.ndim == 3:
    array = array[None]
  if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
    raise Unreadable(f"an array {array.dtype} {list(array.shape)}, not a video")
  if not array.size:
    raise Unreadable("no frames")
  _check_count(len(array), limits)
  check_size(array.shape[2], array.shape[1], limits)
  return array


@contextlib.contextmanager
def open_video(file, head, limits, *, pictures: bool = False):
  """The container and its first stream that is a film, not a cover.

  Args:
    file: open.
    head: its first bytes.
    limits: of its frames.
    pictures: whether one of PNG or JPEG counts as a film of one frame.
  """
  options = dict(_OPTIONS)
  if pictures:
    options["format_whitelist"] += ",png_pipe,jpeg_pipe"
  try:
    container = av.open(file, options=options)
  except av.FFmpegError as error:
    reason = "not a picture or video"
    if head[4:8] in _MOV_BOXES:
      reason = "cut short or damaged: no index (moov) inside"
    elif head.startswith(_SIGNATURES):
      reason = "cut short or damaged"
    raise Unreadable(reason) from error
  with container:
    if len(container.streams) > _MAX_STREAMS:
      raise Unreadable(f"more than {_MAX_STREAMS} streams")
    for stream in container.streams.video:
      if not stream.disposition & Disposition.attached_pic:
        break
    else:
      raise Unreadable("no video stream")
    check_size(stream.codec_context.width, stream.codec_context.height, limits)
    stream.codec_context.thread_count = 1  # files are decoded side by side
    yield container, stream


def _probe_video(container, stream, limits):
  """By the times of packets; those of sound tell where the file ends."""
  first = last = None
  starts, end = set(), 0.0
  for packet in container.demux():
    if packet.is_corrupt:
      raise Unreadable("cut short: a packet lacks its end")
    if packet.stream_index == stream.index and not first:
      first = next(iter(packet.decode()), None)
    if packet.pts is None:
      continue
    stop = packet.pts + (packet.duration or 0)
    end = max(end, float(stop * packet.time_base))
    if packet.stream_index == stream.index and not packet.is_discard:
      starts.add(packet.pts)
      _check_count(len(starts), limits)
      last = packet if packet.pts == max(starts) else last
  view = View(_checked(first, limits), stream)
  check_size(*view.shape[::-1], limits)
  lasts = _lasts(last, stream)
  promised = ((container.start_time or 0) + (container.duration or 0)) / 1e6
  if promised > end + lasts + 1:  # headers are rounded
    raise Unreadable(f"cut short: {end:.1f} of {promised:.1f} seconds")
  seconds = (last.pts - min(starts)) * stream.time_base + lasts
  fps = float(len(starts) / seconds)
  return Probe(len(starts), *view.shape, fps, float(seconds))


def _checked(frame, limits):
  if frame is None:
    raise Unreadable("no frames")
  if frame.pts is None:
    raise Unreadable("frames without times")
  check_size(frame.width, frame.height, limits)
  return frame


def _lasts(shown, stream):
  """Seconds that a frame or packet is shown, a fraction."""
  known = (shown.duration or 0) * stream.time_base
  return known or 1 / (stream.average_rate or fractions.Fraction(1))


def _shown(time, container, stream, first, rest, limits):
  """(time, seconds shown, frame) of those from one at or before `time` on."""
  at = 0.0
  try:
    for frame in _from(time, container, stream, first, rest):
      if frame.is_corrupt:
        raise Unreadable(f"cut short or damaged after {at:.1f} seconds")
      at = float((_checked(frame, limits).pts - first.pts) * stream.time_base)
      yield at, _lasts(frame, stream), frame
  except av.FFmpegError as error:
    reason = f"cut short or damaged after {at:.1f} seconds"
    raise Unreadable(reason) from error


def _from(time, container, stream, first, rest):
  """Frames from one at or before a time on, in their order."""
  if not time:
    return itertools.chain([first], rest)
  target = first.pts + time / stream.time_base
  # A seek goes by the order of decoding, and may end behind the frame; in that
  # order the first begins before it is shown, but some refuse to go too far.
  index = stream.index_entries
  far = first.pts - 20 / stream.time_base
  least = min(first.pts, index[0].timestamp if len(index) else far)
  for early in (0, 2, 20, math.inf):
    start = max(least, target - early / stream.time_base)
    container.seek(int(start), stream=stream)
    frames = container.decode(stream)
    found = next(frames, None)
    is_good = found and not found.is_corrupt and found.pts <= target
    if is_good or start == least:
      break
  return itertools.chain([found] if found else [], frames)


def _nearest(shown, times):
  """The frame nearest to each time; of two equally near, the earlier."""
  i, held = 0, (-math.inf, 0.0, None)
  for step in shown:
    while times[i] <= step[0]:
      is_held = times[i] - held[0] <= step[0] - times[i] + 1e-6
      yield (held if is_held else step)[2]
      i += 1
      if i == len(times):
        return
    held = step
  at, lasts, frame = held
  for time in times[i:]:
    if time > at + lasts + 1e-6:
      raise Unreadable(f"cut short: no frame at {time:.1f} seconds")
    yield frame
