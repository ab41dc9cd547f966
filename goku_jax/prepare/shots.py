"""Long films to files of one shot each, fast to read from anywhere.

A film of 1280x720 costs a second for a clip out of its middle: key frames are
far apart and most of what is decoded is thrown away. Its shots, scaled to what
training reads and with a key frame every few frames, cost a twentieth.
"""

import json
import pathlib
import subprocess
import sys

import av
import numpy as np
from av.video.frame import PictureType

from goku_jax.data import decoder, films, video_io
from goku_jax.data.media import Unreadable
from goku_jax.typing import UserError

# A quality that the eye cannot tell from the film, and short ways to seek.
OPTIONS = {"crf": "12", "preset": "veryfast", "tune": "fastdecode"}
KEY_FRAMES = 8  # frames from one to the next
MEMORY_GIB = 8  # of a process that cuts a film
SMALL = (36, 64)  # height and width at which frames are compared


def prepare(config, workdir) -> dict:
  """Cuts every film of `config.data.path`; returns counts."""
  data = config.data
  if not data.path:
    raise UserError("set --config.data.path to a folder of videos")
  counts = {"films": 0, "shots": 0, "frames": 0}
  for path in video_io.list_videos(data.path):
    lengths = _cut_apart(path, workdir, data.shots.to_dict())
    print(f"{path}: {len(lengths)} shots, {sum(lengths)} frames", flush=True)
    counts["films"] += 1
    counts["shots"] += len(lengths)
    counts["frames"] += sum(lengths)
  return counts


def _cut_apart(path, workdir, settings):
  """`cut` in a process that may crash and grow no further than its limits."""
  command = [sys.executable, "-m", "goku_jax.prepare.shots"]
  command.append(json.dumps([str(path), str(workdir), settings]))
  done = subprocess.run(
    command,
    env=decoder.environment(),
    stdout=subprocess.PIPE,
    check=False,
  )
  if done.returncode:
    reason, lengths = decoder.died(done.returncode), None
  else:
    reason, lengths = json.loads(done.stdout)
  if reason:
    raise UserError(f"{path}: cannot read it ({reason})")
  return lengths


def cut(
  path, folder, *, resolution: int, threshold: float, min_frames: int
) -> list[int]:
  """Writes `folder`/NAME-FIRST.mp4 for each shot; returns their lengths.

  A shot begins where a frame differs from the one before by `threshold` (mean
  absolute difference of tiny frames, 0 to 255) and by three times as much as
  that one from its own: a fast pan differs all the time.

  Args:
    path: the film.
    folder: where to.
    resolution: of the short side; never scaled up.
    threshold: see above.
    min_frames: shorter shots are left out.
  """
  path, folder = pathlib.Path(path), pathlib.Path(folder)
  lengths, writer, before, change = [], None, None, 0.0
  for i, (frame, rate) in enumerate(films.decode(str(path))):
    small = frame.reformat(*SMALL[::-1], "rgb24", interpolation="AREA")
    small = small.to_ndarray().astype(np.float32)
    last = change
    change = 0.0 if before is None else float(np.abs(small - before).mean())
    before = small
    if writer is None or change > max(threshold, 3 * last):
      _close(writer, lengths, min_frames)
      name = f"{path.stem}-{i:06d}.mp4"
      writer = _Writer(folder / name, frame, rate, resolution)
    writer.add(frame)
  _close(writer, lengths, min_frames)
  return lengths


def _close(writer, lengths, min_frames):
  if writer and writer.close(min_frames):
    lengths.append(writer.frames)


class _Writer:
  """One file, which appears when it is whole."""

  def __init__(self, path, frame, rate, resolution):
    self._path, self._partial = path, path.with_suffix(".partial")
    self.frames, self._rate = 0, rate
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = min(1, resolution / min(frame.height, frame.width))
    # 4:2:0 needs even sides.
    self._size = [
      2 * round(side * scale / 2) for side in (frame.width, frame.height)
    ]
    self._container = av.open(str(self._partial), "w", format="mp4")
    stream = self._container.add_stream("libx264", rate=rate)
    stream.width, stream.height = self._size
    stream.pix_fmt = "yuv420p"
    stream.gop_size = KEY_FRAMES
    stream.options = OPTIONS
    self._stream = stream

  def add(self, frame):
    frame = frame.reformat(*self._size, "yuv420p", interpolation="BICUBIC")
    frame.pts, frame.time_base = self.frames, 1 / self._rate
    frame.pict_type = PictureType.NONE  # not what it was in the film
    self._container.mux(self._stream.encode(frame))
    self.frames += 1

  def close(self, min_frames) -> bool:
    self._container.mux(self._stream.encode())
    self._container.close()
    if self.frames < min_frames:
      self._partial.unlink()
      return False
    self._partial.rename(self._path)
    return True


def main(request: str) -> None:
  """What `_cut_apart` asks for; prints a reason or the lengths."""
  path, folder, settings = json.loads(request)
  decoder.limit(MEMORY_GIB)
  try:
    answer = None, cut(path, folder, **settings)
  except Unreadable as error:
    answer = str(error), None
  except MemoryError:
    answer = f"needs more than {MEMORY_GIB} GiB of memory", None
  print(json.dumps(answer))


if __name__ == "__main__":
  main(*sys.argv[1:])
