"""Latents of raw samples, encoded beside the step when they are read.

Letters: T H W frames, height, width, C channels of latents.
"""

import json
import threading

import numpy as np

from goku_jax.data import schema, shards, sources, tokenize
from goku_jax.data.media import Unreadable
from goku_jax.sample import encoder
from goku_jax.typing import UserError


class Encoded:
  """A source of latents (`data/sources.py`) that holds none.

  Args:
    raw: has `len`, `num_classes`, `sizes()` int [n, 4] of frames, height,
      width and text tokens, `key(index)` and `read(index, visit)`, a sample of
      `video` and `captions`.
    encode_by: the autoencoder.
    statistics: `latent_mean` and `latent_std`, by channel.
    text: a `sample.text.TextEncoder` where captions are wanted as embeddings.
    max_shapes: of clips, each of which compiles an encoder.
    max_dropped: share of the samples that may fail.
    ends: whether the first and last frame of clips are encoded alone too.
  """

  def __init__(
    self,
    raw,
    encode_by,
    statistics,
    *,
    text=None,
    max_shapes,
    max_dropped,
    ends=False,
  ):
    self.raw, self.num_classes, self._ends = raw, raw.num_classes, ends
    self._encoder, self._text = encode_by, text
    self._mean, self._std = (
      np.array(statistics[k], np.float32) for k in ("latent_mean", "latent_std")
    )
    self.channels = len(self._mean)
    frames_n4 = raw.sizes()
    count = len(np.unique(frames_n4[:, :3], axis=0))
    if count > max_shapes:
      raise UserError(
        f"the clips have {count} shapes, and each compiles"
        f" an encoder: set data.max_shapes from {max_shapes} to that, a larger"
        " data.clips.multiple, or prepare latents first"
      )
    stride = np.array(encode_by.model.config.stride)
    self.shapes = (frames_n4[:, :3] - [1, 0, 0]) // stride + [1, 0, 0]
    self._texts = frames_n4[:, 3]
    self.is_video = self.shapes[:, 0] > 1
    self.null_text = schema.NO_TEXT
    if text:
      self.null_text = text.encode([""])[0].astype(np.float16)
    self._most = max_dropped
    self._dropped, self._lock = {}, threading.Lock()
    self.log = None  # file that receives what is left out

  def __len__(self) -> int:
    return len(self.raw)

  def sizes(self, patch_size, max_text: int) -> np.ndarray:
    """Tokens and text tokens of every sample, int [n, 2]."""
    return sources.token_sizes(self.shapes, self._texts, patch_size, max_text)

  def read(self, index: int, visit: int) -> dict | None:
    """A sample; None where it cannot be read, and is left out.

    Raises:
      UserError: too many are.
    """
    try:
      sample = self.raw.read(index, visit)
    except Unreadable as error:
      self._drop(index, str(error))
      return None
    # One at a time: each shape has one encoder, however often it comes.
    video, alone = sample["video"], {}
    if self._ends and len(video) > 1:
      alone = {"first": video[:1], "last": video[-1:]}
    parts = [video, *alone.values()]
    (mean, logvar), *ends = encoder.encode(self._encoder, parts, 1)
    if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
      self._drop(index, "latents that are not finite")
      return None
    k = sources.draw_caption(len(sample["captions"]), index, visit)
    caption = sample["captions"][k]
    if self._text:
      (embeddings,) = self._text.encode([caption])
      ids = np.full(len(embeddings), tokenize.EOS, np.int32)
    else:
      ids = tokenize.encode(caption)
      embeddings = np.zeros((len(ids), 0), np.float16)
    ends = [(mean - self._mean) / self._std for mean, _ in ends]
    return {
      **dict(zip(alone, ends, strict=True)),
      "mean": (mean - self._mean) / self._std,
      "logvar": logvar - 2 * np.log(self._std),
      "text_ids": ids,
      "text_embeddings": embeddings.astype(np.float16),
      "class": int(sample.get("class", 0)),
      "index": index,
    }

  def _drop(self, index, reason):
    with self._lock:
      if index not in self._dropped:
        key = self.raw.key(index)
        print(f"left out: {key}: {reason}", flush=True)
        self._dropped[index] = {"key": key, "reason": reason}
        if self.log:
          with open(self.log, "a") as file:
            file.write(json.dumps(self._dropped[index]) + "\n")
      shards.check_dropped(
        list(self._dropped.values()),
        len(self),
        self._most,
        "samples cannot be read",
      )


def measure(raw, encode_by, count: int) -> dict:
  """Statistics of the latents of `count` samples, evenly over all."""
  moments = shards.Moments()
  places = np.linspace(0, len(raw) - 1, min(count, len(raw))).astype(int)
  for index in places.tolist():
    try:
      video = raw.read(index, 0)["video"]
    except Unreadable:
      continue
    moments.add(*encoder.encode(encode_by, [video], 1)[0])
  if not moments.sums()[0]:
    raise UserError("0 batches: none of the first samples can be read")
  return {
    "latent_mean": moments.mean.tolist(),
    "latent_std": moments.std.tolist(),
  }
