"""What the flow model is trained on: latents with captions, by number.

A source has `len`, `num_classes`, `channels`, `shapes` (int [n, 3], frames,
height and width of latents), `is_video` (bool [n]), `sizes(patch_size,
max_text)`, the tokens and text tokens of every sample as the planner wants
them, and `read(index, visit)`, a sample of

  mean, logvar     float32 [T, H, W, C], each channel of `mean` of unit variance
  text_ids         int32 [s], the whole caption and EOS
  text_embeddings  float16 [s, E] of it, E = 0 where the model reads the pieces
  class, index     int, the class below num_classes, -1 where there is none
  first, last      of a clip, float32 [1, H, W, C], its first and last frame,
                   each encoded alone; where models are told of given frames

A sample with several captions shows another one at each visit, drawn by index
and visit. `null_text` float16 [1, E] is the embedding of no caption.
"""

import functools
import json
import operator
import pathlib

import numpy as np
import safetensors.numpy
from grain.sources import ArrayRecordDataSource

from goku_jax.data import hashing, schema, shards, tokenize
from goku_jax.typing import UserError

_CAPTION = 0xCA  # what a draw is for


class Pixels:
  """A raw source as latents of its own: three channels in [-1, 1].

  Args:
    raw: has `len`, `num_classes`, `sizes()`, int [n, 4] of frames, height,
      width and text tokens, and samples of `video` (uint8) and `caption`.
  """

  channels, null_text = 3, schema.NO_TEXT

  def __init__(self, raw):
    self.raw, self.num_classes = raw, raw.num_classes
    self.shapes = raw.sizes()[:, :3]
    self.is_video = self.shapes[:, 0] > 1

  def __len__(self) -> int:
    return len(self.raw)

  def sizes(self, patch_size, max_text: int) -> np.ndarray:
    """Tokens and text tokens of every sample, int [n, 2]."""
    sizes = self.raw.sizes()
    return token_sizes(sizes[:, :3], sizes[:, 3], patch_size, max_text)

  def read(self, index: int, visit: int) -> dict:
    """A sample whose posterior is certain."""
    del visit  # the same each time
    sample = self.raw[index]
    mean = sample["video"].astype(np.float32) / 127.5 - 1
    ids = tokenize.encode(sample["caption"])
    return {
      "mean": mean,
      "logvar": np.full_like(mean, schema.NO_LOGVAR),
      "text_ids": ids,
      "text_embeddings": np.zeros((len(ids), 0), np.float16),
      "class": int(sample.get("class", 0)),
      "index": index,
      "first": mean[:1],
      "last": mean[-1:],
    }


class Latents:
  """The latents of a prepared folder, brought to unit variance.

  Args:
    path: the folder.
    verify: whether to compare all shards with their digests first.
    embedded: whether captions are wanted as the folder's embeddings.
    statistics: `latent_mean` and `latent_std` of another folder, by which
      these latents are scaled; their own by default.
  """

  def __init__(
    self,
    path,
    *,
    verify: bool = True,
    embedded: bool = False,
    statistics: dict | None = None,
  ):
    folder = pathlib.Path(path)
    self.manifest = shards.read_manifest(folder)
    if verify:
      shards.check_digests(folder, self.manifest)
    self.classes = tuple(self.manifest.get("classes", ()))
    self.num_classes = max(1, len(self.classes))
    self.statistics = statistics or {
      k: self.manifest[k] for k in ("latent_mean", "latent_std")
    }
    self._mean, self._std = (
      np.array(x, np.float32) for x in self.statistics.values()
    )
    self.channels = len(self._mean)
    with np.load(folder / shards.INDEX, allow_pickle=False) as file:
      self.shapes = file["sizes"]
      self._texts = file["tokens" if embedded else "pieces"]
    self.is_video = self.shapes[:, 0] > 1
    self._embedded, self.null_text = embedded, schema.NO_TEXT
    if embedded:
      if not self.manifest.get("text"):
        raise UserError(
          f"{path} has no text embeddings: run prepare with --config.text.path,"
          " or train with model.text"
        )
      self.null_text = np.load(folder / shards.NULL_TEXT, allow_pickle=False)
    names = [shard["name"] for shard in self.manifest["shards"]]
    self._records = ArrayRecordDataSource([str(folder / n) for n in names])

  def __len__(self) -> int:
    return len(self.shapes)

  def sizes(self, patch_size, max_text: int) -> np.ndarray:
    """Tokens and text tokens of every sample, int [n, 2].

    Of several captions the longest counts, whichever is drawn.
    """
    return token_sizes(self.shapes, self._texts.max(1), patch_size, max_text)

  def read(self, index: int, visit: int) -> dict:
    """A sample with its posterior in units of the latents' deviation."""
    record = safetensors.numpy.load(self._records[index])
    mean, logvar = (record[k].astype(np.float32) for k in ("mean", "logvar"))
    captions = json.loads(record["about"].tobytes())["captions"]
    k = draw_caption(len(captions), index, visit)
    if self._embedded:
      embeddings = record[f"text_{k}"]
      ids = np.full(len(embeddings), tokenize.EOS, np.int32)
    else:
      ids = tokenize.encode(captions[k])
      embeddings = np.zeros((len(ids), 0), np.float16)
    alone = {
      name: (record[f"{name}_mean"] - self._mean) / self._std
      for name in ("first", "last")
      if f"{name}_mean" in record
    }
    return {
      **alone,
      "mean": (mean - self._mean) / self._std,
      "logvar": logvar - 2 * np.log(self._std),
      "text_ids": ids,
      "text_embeddings": embeddings,
      "class": int(record.get("class", 0)),
      "index": index,
    }


class Mixture:
  """Several sources one after the other, as one."""

  def __init__(self, sources: list):
    self.sources = sources
    self._ends = np.cumsum([len(source) for source in sources])
    named = {source.classes for source in sources if source.classes}
    # Where they differ a number is of several classes, and so of none.
    self.num_classes = len(named.pop()) if len(named) == 1 else 1
    self.shapes = np.concatenate([source.shapes for source in sources])
    self.is_video = self.shapes[:, 0] > 1
    self.channels = sources[0].channels
    self.null_text = sources[0].null_text
    self.member = np.repeat(np.arange(len(sources)), list(map(len, sources)))

  def __len__(self) -> int:
    return int(self._ends[-1])

  def sizes(self, patch_size, max_text: int) -> np.ndarray:
    """Tokens and text tokens of every sample, int [n, 2]."""
    return np.concatenate([s.sizes(patch_size, max_text) for s in self.sources])

  def read(self, index: int, visit: int) -> dict:
    """A sample of one of them, under its number among all."""
    k = int(self.member[index])
    own = index - (int(self._ends[k - 1]) if k else 0)
    return self.sources[k].read(own, visit) | {"index": index}


def open_latents(
  path: str, *, embedded: bool = False, statistics: dict | None = None
) -> Latents | Mixture:
  """The prepared folders of a path, commas between them.

  All are scaled by `statistics`, by default those of the first, whose
  autoencoder the run carries.

  Raises:
    UserError: two of them are of other autoencoders or text encoders.
  """
  first, *others = (part.strip() for part in path.split(","))
  latents = [Latents(first, embedded=embedded, statistics=statistics)]
  for other in others:
    more = Latents(other, embedded=embedded, statistics=latents[0].statistics)
    for key, what in (("vae", "autoencoder"), ("text", "text encoder")):
      digests = [
        (x.manifest.get(key) or {}).get("digest") for x in (latents[0], more)
      ]
      if digests[0] != digests[1] and (key == "vae" or embedded):
        raise UserError(
          f"{other} was prepared with another {what} than {first}: run prepare"
          " again with the same"
        )
    latents.append(more)
  return Mixture(latents) if others else latents[0]


def draw_caption(count: int, index: int, visit: int) -> int:
  """Which of its captions a sample shows at a visit."""
  return int(hashing.uniform(_CAPTION, index, visit)[0] * count)


def token_sizes(shapes_n3, texts_n, patch_size, max_text: int) -> np.ndarray:
  """Tokens and text tokens, int [n, 2], of samples of these shapes."""
  odd = np.flatnonzero((shapes_n3 % np.array(patch_size)).any(axis=1))
  if len(odd):
    shape = "x".join(map(str, shapes_n3[odd[0]]))
    raise UserError(
      f"sample {odd[0]} of {shape} frames, height and width does not divide "
      f"into patches of {'x'.join(map(str, patch_size))}: set patch_size"
    )
  patch_volume = functools.reduce(operator.mul, patch_size)
  tokens = shapes_n3.prod(axis=1) // patch_volume
  return np.stack([tokens, np.minimum(texts_n, max_text)], axis=1)
