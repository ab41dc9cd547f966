"""Videos, pictures and their metadata, to files and back.

Videos are uint8 RGB, `video_THWC`, 0 to 255; `fps` is in frames per second.
The same frames and metadata always give the same bytes, and a file appears
whole or not at all.

Letters: T frames, H W height and width, C = 3 channels.
"""

import atexit
import contextlib
import fractions
import functools
import io
import itertools
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from goku_jax.data import decoder, films, media
from goku_jax.data.media import Unreadable
from goku_jax.data.transforms import check_pixels
from goku_jax.typing import UserError

SUFFIXES = (".mp4", ".gif", ".png", ".npz")  # written
READABLE = (*SUFFIXES, ".jpg", ".jpeg", ".avi", ".mkv", ".mov", ".webm")
# x264's quality scale: about 18 looks lossless; 12 keeps a judge's figures.
_CRF = "12"
_CHUNK = 16  # frames of a film that come from a child at once


def write_video(
  path,
  video_THWC: np.ndarray,
  *,
  fps: float | int = 8,
  metadata: dict | None = None,
  upscale: int = 1,
) -> None:
  """Writes a video to .mp4, .gif or .npz, or a single frame to .png.

  Args:
    path: its suffix chooses the format; missing folders are made.
    metadata: kept inside the file as JSON, for `read_metadata`.
    upscale: every pixel becomes a square of this many pixels, so that a tiny
      video can be watched; .npz keeps the size as it is.
  """
  path = pathlib.Path(path)
  check_suffix(path)
  video_THWC = np.asarray(video_THWC)
  if video_THWC.ndim != 4 or video_THWC.shape[-1] != 3:
    raise ValueError(f"expected a video [T, H, W, 3], got {video_THWC.shape}")
  if video_THWC.dtype != np.uint8 or not video_THWC.size:
    raise ValueError(
      f"expected a uint8 video with at least one frame, got"
      f" {video_THWC.dtype} {video_THWC.shape}"
    )
  if path.suffix.lower() == ".png" and len(video_THWC) > 1:
    raise UserError(
      f"{path}: a .png holds one frame, but the video has {len(video_THWC)};"
      " use .mp4, .gif or .npz"
    )
  if path.suffix.lower() != ".npz":
    video_THWC = video_THWC.repeat(upscale, 1).repeat(upscale, 2)
  encode = {
    ".mp4": _mp4, ".gif": _gif, ".png": _png, ".npz": _npz
  }[path.suffix.lower()]  # fmt: skip
  comment = json.dumps(metadata or {})
  _write(path, encode(video_THWC, fractions.Fraction(fps), comment))


def check_suffix(path) -> None:
  """Raises where `write_video` could not tell the format of the file."""
  suffix = pathlib.Path(path).suffix
  if suffix.lower() not in SUFFIXES:
    raise UserError(
      f"{path}: cannot write {suffix or 'a name without a suffix'}; use one of"
      f" {' '.join(SUFFIXES)}"
    )


def read_video(path) -> tuple[np.ndarray, float]:
  """The frames of a file as uint8 [T, H, W, 3], and its frames per second."""
  path = pathlib.Path(path)
  if path.suffix.lower() == ".npz":
    with _readable(path):
      return _arrays(path)
  chunks = list(_chunks(path, 0, _CHUNK))
  return np.concatenate([frames for _, frames in chunks]), chunks[0][0]


def _arrays(path):
  # Opened here: NumPy leaves a file that is cut short open.
  with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
    return arrays["video"], float(arrays["fps"])


def list_videos(folder) -> list[pathlib.Path]:
  """Videos and pictures in a folder and those below it, by name.

  Raises:
    UserError: there is none.
  """
  paths = sorted(
    path
    for path in pathlib.Path(folder).rglob("*")
    if path.suffix.lower() in READABLE and not path.name.startswith(".")
  )
  if not paths:
    raise UserError(f"{folder} holds no video or picture, {' '.join(READABLE)}")
  return paths


def read_clips(
  path, num_frames: int, fps: float | int = 0
) -> Iterator[np.ndarray]:
  """Clips [T, H, W, 3] of a file, one after the other.

  All have `num_frames`, but the only one of a shorter file; what is left at
  the end is left out. One clip is held at a time, however long the file.

  Args:
    fps: frames are left out until so many a second remain, and never
      repeated; 0 keeps all.
  """
  path = pathlib.Path(path)
  with _readable(path):
    frames = _kept_frames(path, num_frames, fps)
    yield np.stack(list(itertools.islice(frames, num_frames)))
    while len(clip := list(itertools.islice(frames, num_frames))) == num_frames:
      yield np.stack(clip)


def _kept_frames(path, num_frames, fps):
  """The frames of a file that are kept, of a film a few at a time."""
  if path.suffix.lower() == ".npz":
    video_THWC, own = _arrays(path)
    numbers = films.spaced(own, fps)
    length = len(video_THWC)
    yield from (
      video_THWC[i] for i in itertools.takewhile(lambda i: i < length, numbers)
    )
    return
  for _, frames in _chunks(path, fps, min(num_frames, _CHUNK)):
    yield from frames


def _chunks(path, fps, count):
  """The film's rate and its kept frames [T, H, W, 3], `count` at a time."""
  first = 0
  while True:
    rate, frames = _ask(path, "kept", first=first, count=count, fps=fps)
    if frames is None:
      break
    yield rate, frames
    first += len(frames)
    if len(frames) < count:
      break
  if not first:
    raise UserError(f"{path}: cannot read it (no frames inside)")


def _ask(path, call, **given):
  """What a child that can be killed reads of a film: see `films`."""
  try:
    return _decoder(os.getpid()).call(call, str(path), **given)
  except Unreadable as error:
    raise UserError(f"{path}: cannot read it ({error})") from error


@functools.cache
def _decoder(process):
  """One for each process: a fork has children of its own."""
  del process
  pool = decoder.Decoder(os.cpu_count() or 1)
  atexit.register(pool.close)
  return pool


def probe(path) -> tuple[int, int, int, float]:
  """Frames, height, width and frames per second of a file, not decoded.

  An .npz is read whole, and its pixels are looked at.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() == ".npz":
    video_THWC, fps = read_video(path)
    check_pixels(video_THWC, path)
    return *video_THWC.shape[:3], fps
  return tuple(_ask(path, "probe")[0])


def read_frames(
  path, indices, size: tuple[int, int] | None = None
) -> np.ndarray:
  """Frames of a file by number, uint8 [T, H, W, 3].

  Decoding begins at the last key frame before the first of them, so the cost
  is that of the frames from there to the last, wherever in the file.

  Args:
    path: the file.
    indices: rising frame numbers, counted at the file's mean rate: each gives
      what is shown at its time, where frames last unevenly.
    size: height and width to scale to.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() == ".npz":
    video_THWC = check_pixels(read_video(path)[0], path)[list(indices)]
    H, W = size or video_THWC.shape[1:3]
    images = [Image.fromarray(frame).resize((W, H)) for frame in video_THWC]
    return np.stack(images)
  indices = list(map(int, indices))
  return _ask(path, "read", indices=indices, size=size)[1]


def read_metadata(path) -> dict:
  """The metadata that `write_video` put into the file; {} where none is."""
  path = pathlib.Path(path)
  with _readable(path):
    if path.suffix.lower() == ".npz":
      with np.load(path, allow_pickle=False) as arrays:
        comment = str(arrays["comment"])
    elif path.suffix.lower() in (".png", ".gif"):
      with Image.open(path, formats=("PNG", "GIF")) as image:
        comment = image.info.get("comment", "")
    else:
      with (
        media.open_file(str(path)) as (file, head),
        media.open_video(file, head, media.LIMITS, pictures=True) as (film, _),
      ):
        comment = film.metadata.get("comment", "")
  try:
    metadata = json.loads(comment)
  except ValueError:  # a comment that somebody else wrote
    return {}
  return metadata if isinstance(metadata, dict) else {}


def _mp4(video_THWC, fps, comment) -> bytes:
  """H.264 that every browser plays; odd sizes grow by a repeated edge."""
  _, H, W, _ = video_THWC.shape
  video_THWC = np.pad(
    video_THWC, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), "edge"
  )
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    container.metadata["comment"] = comment
    stream = container.add_stream("libx264", rate=_rate(fps))
    stream.height, stream.width = video_THWC.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": _CRF}
    # The bytes depend on the number of threads.
    stream.codec_context.thread_count = 1
    for frame in video_THWC:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
    container.mux(stream.encode())
  return buffer.getvalue()


def _gif(video_THWC, fps, comment) -> bytes:
  """One palette for all frames: exact up to 256 colours, nearest beyond."""
  T, H, W, _ = video_THWC.shape
  colours, index = np.unique(
    video_THWC.reshape(-1, 3), axis=0, return_inverse=True
  )
  if len(colours) > 256:
    image = Image.fromarray(video_THWC.reshape(T * H, W, 3))
    image = image.quantize(256, dither=Image.Dither.NONE)
    colours = np.reshape(image.getpalette(), (-1, 3))
    index = np.asarray(image)
  index_THW = index.reshape(T, H, W).astype(np.uint8)
  palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
  palette[: len(colours), 1:] = colours
  buffer = io.BytesIO()
  # Not Pillow: it merges equal frames, and a still clip would lose its length.
  with av.open(buffer, "w", format="gif") as container:
    stream = container.add_stream("gif", rate=_rate(fps))
    stream.height, stream.width, stream.pix_fmt = H, W, "pal8"
    for frame in index_THW:
      frame = av.VideoFrame.from_ndarray((frame, palette), format="pal8")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  data = buffer.getvalue()
  # FFmpeg writes no comment: put one after the header and global palette.
  head = 13 + (3 * 2 ** ((data[10] & 7) + 1) if data[10] & 128 else 0)
  text = comment.encode()
  blocks = [text[i : i + 255] for i in range(0, len(text), 255)]
  extension = b"!\xfe" + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"
  return data[:head] + extension + data[head:]


def _png(video_THWC, fps, comment) -> bytes:
  del fps
  info = PngImagePlugin.PngInfo()
  info.add_text("comment", comment)
  buffer = io.BytesIO()
  Image.fromarray(video_THWC[0]).save(buffer, "png", pnginfo=info)
  return buffer.getvalue()


def _npz(video_THWC, fps, comment) -> bytes:
  buffer = io.BytesIO()
  np.savez_compressed(
    buffer, video=video_THWC, fps=float(fps), comment=np.array(comment)
  )
  return buffer.getvalue()


def _rate(fps: fractions.Fraction) -> fractions.Fraction:
  return fps.limit_denominator(1001)  # 23.976 is 24000/1001


def _write(path: pathlib.Path, data: bytes) -> None:
  """Writes the bytes under another name, then renames: whole or not at all."""
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      partial.write_bytes(data)
      partial.replace(path)
    finally:
      partial.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(
      f"{path}: cannot write there ({error.strerror}); choose another place"
    ) from error


@contextlib.contextmanager
def _readable(path: pathlib.Path):
  """Turns the many ways in which a file cannot be read into one line."""
  try:
    yield
  except UserError:  # it has one already
    raise
  except OSError as error:  # FFmpeg's and Pillow's errors are OSErrors too
    reason = error.strerror or "not a picture or video"
    raise UserError(f"{path}: cannot read it ({reason})") from error
  except (
    *(ValueError, TypeError, IndexError, KeyError, EOFError),
    *(zipfile.BadZipFile, zlib.error),  # of an .npz
    Image.DecompressionBombError,
  ) as error:
    raise UserError(
      f"{path}: cannot read it (no frames inside, or cut short)"
    ) from error


def contact_sheet(
  rows: list[list[np.ndarray]],
  captions: list[list[str]],
  path,
  *,
  frame_height: int = 64,
) -> None:
  """Writes a PNG that shows each video as a strip of frames, first to last.

  Args:
    rows: videos [T, H, W, 3] or images [H, W, 3], row by row, any sizes.
    captions: the text above each of them, in the same nesting.
    frame_height: in pixels, of all.
  """
  buffer = io.BytesIO()
  sheet = _sheet(rows, captions, num_frames=5, frame_height=frame_height)
  sheet.save(buffer, "png")
  _write(pathlib.Path(path), buffer.getvalue())


def contact_video(
  rows: list[list[np.ndarray]],
  captions: list[list[str]],
  path,
  *,
  fps: float | int = 8,
) -> None:
  """Writes a video of a sheet on which all videos play at once.

  Arguments as of `contact_sheet`; those that end early keep their last frame.
  """
  at = lambda t: [[video[min(t, len(video) - 1)] for video in r] for r in rows]
  frames = [
    np.asarray(_sheet(at(t), captions, num_frames=1, frame_height=128))
    for t in range(max(len(video) for row in rows for video in row))
  ]
  write_video(path, np.stack(frames), fps=fps)


def _sheet(rows, captions, *, num_frames, frame_height) -> Image.Image:
  font = ImageFont.load_default(size=13)
  cells = [
    [
      _cell(video, caption, num_frames, frame_height, font)
      for video, caption in zip(*row, strict=True)
    ]
    for row in zip(rows, captions, strict=True)
  ]
  gap = 12
  columns = max(map(len, cells))
  widths = [
    max(row[i].width for row in cells if i < len(row)) for i in range(columns)
  ]
  heights = [max((cell.height for cell in row), default=0) for row in cells]
  size = (
    sum(widths) + gap * (columns + 1),
    sum(heights) + gap * (len(rows) + 1),
  )
  sheet = Image.new("RGB", size, "white")
  y = gap
  for row, height in zip(cells, heights, strict=True):
    x = gap
    for cell, width in zip(row, widths, strict=False):  # rows may be short
      sheet.paste(cell, (x, y))
      x += width + gap
    y += height + gap
  return sheet


def _cell(video, caption, num_frames, frame_height, font) -> Image.Image:
  """A strip of frames with its caption above, at least 200 pixels wide."""
  video_THWC = video[None] if video.ndim == 3 else video
  T, H, W, _ = video_THWC.shape
  chosen = np.unique(np.linspace(0, T - 1, num_frames).round().astype(int))
  size = (max(round(W * frame_height / H), 1), frame_height)
  # Whole pixels stay square when a small canvas is enlarged.
  filter = Image.Resampling.NEAREST if frame_height > H else None
  frames = [Image.fromarray(video_THWC[t]).resize(size, filter) for t in chosen]
  width = max(len(frames) * (size[0] + 2) - 2, 200)
  lines = _wrap(caption, width, font)
  line_height = 17
  cell = Image.new("RGB", (width, 2 * line_height + frame_height), "white")
  draw = ImageDraw.Draw(cell)
  for i, line in enumerate(lines):
    y = (2 - len(lines) + i) * line_height
    draw.text((0, y), line, fill="black", font=font)
  for i, frame in enumerate(frames):
    cell.paste(frame, (i * (size[0] + 2), 2 * line_height))
  return cell


def _wrap(caption: str, width: int, font) -> list[str]:
  """At most two lines of the caption that fit the width."""
  words = caption.encode("utf-8", "replace").decode()[:500].split()
  lines = [""]
  for i, word in enumerate(words):
    longer = f"{lines[-1]} {word}".strip()
    if font.getlength(longer) <= width:
      lines[-1] = longer
    elif len(lines) == 1 and lines[0]:
      lines.append(word)
    else:
      lines[-1] = " ".join([lines[-1], *words[i:]]).strip()
      break
  if font.getlength(lines[-1]) > width:
    while lines[-1] and font.getlength(lines[-1] + "...") > width:
      lines[-1] = lines[-1][:-1]
    lines[-1] += "..."
  return lines


def curves(path, series: dict[str, tuple]) -> None:
  """Writes a picture of losses by step: raw values faint, smoothed ones strong.

  The scale is logarithmic where every value is positive.

  Args:
    series: name to (steps, values); values that are not finite are left out.
  """
  from matplotlib.figure import Figure  # slow to import, and only used here

  figure = Figure(figsize=(8, 4.5), layout="constrained")
  axes = figure.subplots()
  positive = True
  for i, (name, (steps, values)) in enumerate(series.items()):
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    positive &= bool((values > 0).all())
    axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smooth(values), color=f"C{i}", label=name)
  if positive:
    axes.set_yscale("log")
  axes.set(xlabel="step", ylabel="loss")
  axes.grid(alpha=0.3)
  if series:
    axes.legend()
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  _write(pathlib.Path(path), buffer.getvalue())


def panels(path, figures: dict[str, dict[str, tuple]]) -> None:
  """Writes a picture with a panel for each figure, three in a row.

  Args:
    figures: by name, and in each name to (steps, values).
  """
  from matplotlib.figure import Figure  # slow to import, and only used here

  rows = -(-len(figures) // 3)
  figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
  grid = list(figure.subplots(rows, 3, squeeze=False).flat)
  for axes, (title, series) in zip(grid, figures.items(), strict=False):
    for name, (steps, values) in series.items():
      axes.plot(steps, values, marker="o", label=name)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
  for axes in grid[len(figures) :]:
    axes.set_axis_off()
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=100)
  _write(pathlib.Path(path), buffer.getvalue())


def _smooth(values: np.ndarray) -> np.ndarray:
  """The centred mean over a twentieth of the series; shorter at the ends."""
  half = len(values) // 40
  total = np.concatenate([[0.0], np.cumsum(values)])
  index = np.arange(len(values))
  low = np.maximum(index - half, 0)
  high = np.minimum(index + half + 1, len(values))
  return (total[high] - total[low]) / (high - low)
