"""What decoding in children that can be killed costs beside PyAV alone.

Letters: T frames, H W height and width.
"""

import pathlib
import tempfile
import time

import av
import numpy as np

from goku_jax.data import video_io
from goku_jax.data.decoder import Decoder

SHAPE = (97, 480, 854)  # of a clip, T H W


def compare(rounds: int, shape: tuple[int, int, int] = SHAPE) -> dict:
  """Frames a second of one child and of PyAV, one core each, and their ratio.

  Both give an H.264 clip in its own size as uint8 RGB; `difference` is how far
  they are apart at most.

  Args:
    rounds: the fastest of each counts; they take turns.
    shape: T, H and W of the clip, the last two even.
  """
  T, H, W = shape
  with tempfile.TemporaryDirectory() as folder, Decoder(1) as decoder:
    path = str(pathlib.Path(folder, "clip.mp4"))
    video_io.write_video(path, _moving_noise(*shape), fps=24)
    times = [t / 24 for t in range(T)]
    sides = {
      "ours": lambda: decoder.read(path, times, (H, W)),
      "pyav": lambda: _decode_alone(path),
    }
    ours, alone = (side() for side in sides.values())  # the child starts
    difference = max(
      int(np.abs(a.astype(np.int16) - b).max())
      for a, b in zip(ours, alone, strict=True)
    )
    del ours, alone
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
      for name, side in sides.items():
        start = time.perf_counter()
        side()
        seconds[name].append(time.perf_counter() - start)
  fps = {name: T / min(each) for name, each in seconds.items()}
  return {
    "ours_decode_fps": fps["ours"],
    "pyav_decode_fps": fps["pyav"],
    "decode_ratio": fps["ours"] / fps["pyav"],
    "difference": difference,
  }


def _decode_alone(path):
  with av.open(path) as container:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return [
      frame.to_ndarray(format="rgb24", threads=1)
      for frame in container.decode(stream)
    ]


def _moving_noise(T, H, W):
  """Blocks of colour that wander under grain, uint8 [T, H, W, 3]."""
  rng = np.random.default_rng(0)
  blocks = rng.integers(8, 248, (-(-H // 8), -(-W // 8), 3), np.uint8)
  image = blocks.repeat(8, 0).repeat(8, 1)[:H, :W]
  grain = lambda: rng.integers(-6, 7, image.shape, np.int8)
  return np.stack(
    [
      (np.roll(image, (3 * t, 2 * t), (0, 1)) + grain()).astype(np.uint8)
      for t in range(T)
    ]
  )
