"""What the flow model is trained on: sources of latents with captions.

A source has `len`, `num_classes`, `sizes(patch_size, max_text)`, the tokens and
text tokens of every sample as the planner wants them, and random access to
samples

  mean, logvar   float32 [T, H, W, C], each channel of `mean` of unit variance
  text_ids       int32 [n], the whole caption and EOS
  class, index   int, the class below num_classes

`Pixels` takes a raw source (uint8 video and caption; `num_classes`; `sizes()`
int [n, 4] of frames, height, width and text tokens). `Latents` reads a folder
that a `ShardWriter` wrote:

  shard-00000.array_record ...   one record a sample, safetensors of `mean`
                  and `logvar` as the autoencoder gave them, `caption` (UTF-8)
                  and whatever numbers came along (`digit`, ...)
  index.npz       `sizes` int64 [n, 4]: t, h, w of the latents, text tokens
  manifest.json   written last: a folder without it is not whole
  shard-00000.json ...           until then: what is known of each whole shard
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import json
import operator
import os
import pathlib
from typing import SupportsIndex

import numpy as np
import safetensors.numpy
from array_record.python import array_record_module
from grain.sources import ArrayRecordDataSource

from goku_jax.data import schema, tokenize
from goku_jax.typing import UserError

LAYOUT = 2
MANIFEST, INDEX = "manifest.json", "index.npz"


class Pixels:
  """A raw source as latents of its own: three channels in [-1, 1]."""

  def __init__(self, raw):
    self.raw, self.num_classes = raw, raw.num_classes

  def __len__(self) -> int:
    return len(self.raw)

  def sizes(self, patch_size, max_text: int) -> np.ndarray:
    """Tokens and text tokens of every sample, int [n, 2]."""
    return _token_sizes(self.raw.sizes(), patch_size, max_text)

  def __getitem__(self, index: SupportsIndex) -> dict:
    """A sample whose posterior is certain."""
    sample = self.raw[index]
    mean = sample["video"].astype(np.float32) / 127.5 - 1
    return {
      "mean": mean,
      "logvar": np.full_like(mean, schema.NO_LOGVAR),
      "text_ids": tokenize.encode(sample["caption"]),
      "class": int(sample.get("digit", 0)),
      "index": operator.index(index),
    }


class Latents:
  """The latents of a prepared folder, brought to unit variance.

  Args:
    path: the folder.
    verify: whether to compare all shards with their digests first.
  """

  def __init__(self, path, *, verify: bool = True):
    folder = pathlib.Path(path)
    self.manifest = _read_manifest(folder)
    if verify:
      check_digests(folder, self.manifest)
    # Folders of older versions do not tell it.
    self.num_classes = self.manifest.get("num_classes", 1)
    stats = (self.manifest[k] for k in ("latent_mean", "latent_std"))
    self._mean, self._std = (np.array(x, np.float32) for x in stats)
    with np.load(folder / INDEX) as file:
      self._sizes = file["sizes"]
    names = [shard["name"] for shard in self.manifest["shards"]]
    self._records = ArrayRecordDataSource([str(folder / n) for n in names])

  def __len__(self) -> int:
    return len(self._sizes)

  def sizes(self, patch_size, max_text: int) -> np.ndarray:
    """Tokens and text tokens of every sample, int [n, 2]."""
    return _token_sizes(self._sizes, patch_size, max_text)

  def __getitem__(self, index: SupportsIndex) -> dict:
    """A sample with its posterior in units of the latents' deviation."""
    index = operator.index(index)
    record = safetensors.numpy.load(self._records[index])
    mean, logvar = (record[k].astype(np.float32) for k in ("mean", "logvar"))
    caption = record["caption"].tobytes().decode()
    return {
      "mean": (mean - self._mean) / self._std,
      "logvar": logvar - 2 * np.log(self._std),
      "text_ids": tokenize.encode(caption),
      "class": int(record.get("digit", 0)),
      "index": index,
    }


class ShardWriter:
  """Writes latents in shards, going on after those that are whole.

  The same records give the same bytes, written at once or in several goes.

  Args:
    folder: made if missing; a manifest in it is removed by `write`.
    records_per_shard: how many before the next shard is begun.
    about: more entries for the manifest. Work that was begun with others is
      begun anew.
  """

  def __init__(self, folder, *, records_per_shard: int, about=None):
    if records_per_shard < 1:
      raise UserError(f"records_per_shard={records_per_shard}: set 1 or more")
    self._folder = pathlib.Path(folder)
    self._each = records_per_shard
    self._about = about or {}
    self._moments, self._sizes, self._shards = Moments(), [], []
    self._go_on()

  def __len__(self) -> int:
    """The records in whole shards: how many `write` need not be given."""
    return len(self._sizes)

  def _go_on(self):
    """Takes up the shards of an earlier go, as far as they are whole."""
    while True:
      path = self._folder / _shard_name(len(self._shards))
      try:
        record = json.loads(path.with_suffix(".json").read_text())
      except (FileNotFoundError, ValueError):
        return
      begun_alike = record["begun_with"] == [self._each, self._about]
      if not begun_alike or record["shard"]["digest"] != _digest(path):
        return
      self._shards.append(record["shard"])
      self._sizes += record["sizes"]
      self._moments = Moments(*record["moments"])

  def write(self, records):
    """Writes what follows the whole shards.

    Args:
      records: an iterator of dicts: `mean` and `logvar` [t, h, w, c],
        `caption` (str), and numbers or arrays of numbers under other names.
    """
    self._folder.mkdir(parents=True, exist_ok=True)
    (self._folder / MANIFEST).unlink(missing_ok=True)
    whole = {shard["name"] for shard in self._shards}
    for stale in self._folder.glob("shard-*.array_record"):
      if stale.name not in whole:
        stale.unlink()
    records = iter(records)
    for first in records:
      rest = itertools.islice(records, self._each - 1)
      self._write_shard(itertools.chain([first], rest))
    if not self._sizes:
      raise UserError("0 records: there is nothing to write")

  def _write_shard(self, records):
    name, before = _shard_name(len(self._shards)), len(self._sizes)
    path = self._folder / name
    with contextlib.closing(_open_writer(path)) as writer:
      for record in records:
        size = _write_record(writer, record, self._moments, len(self._sizes))
        self._sizes.append(size)
    sizes = self._sizes[before:]
    shard = {"name": name, "records": len(sizes), "digest": _digest(path)}
    self._shards.append(shard)
    record = {
      "begun_with": [self._each, self._about],
      "shard": shard,
      "sizes": sizes,
      "moments": self._moments.sums(),  # of this shard and all before
    }
    _write_whole(path.with_suffix(".json"), json.dumps(record))

  def statistics(self) -> dict:
    """Mean and deviation of each channel, of all that is written."""
    return {
      "latent_mean": self._moments.mean.tolist(),
      "latent_std": self._moments.std.tolist(),
    }

  def finish(self) -> dict:
    """Makes the folder whole; returns its manifest."""
    index = self._folder / INDEX
    np.savez(index, sizes=np.array(self._sizes, np.int64))
    manifest = {
      "layout": LAYOUT,
      "records": len(self._sizes),
      "shards": self._shards,
      "index": {"name": INDEX, "digest": _digest(index)},
      **self.statistics(),
      **self._about,
    }
    text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    _write_whole(self._folder / MANIFEST, text)
    for record in self._folder.glob("shard-*.json"):
      record.unlink()
    return manifest


class Moments:
  """Mean and deviation, by channel, of latents drawn from their posteriors."""

  def __init__(self, count: int = 0, sums=((0.0,), (0.0,))):
    self._count, self._sums = count, np.array(sums)

  def sums(self) -> tuple[int, list]:
    """What makes the same moments again, exactly, also through JSON."""
    return self._count, self._sums.tolist()

  def add(self, mean: np.ndarray, logvar: np.ndarray):
    """Counts every position of a sample."""
    axes = tuple(range(mean.ndim - 1))
    mean, logvar = mean.astype(np.float64), logvar.astype(np.float64)
    # Var x = Var E[x|z] + E Var[x|z]: what training draws has unit variance.
    square = np.square(mean) + np.exp(logvar)
    self._sums = self._sums + np.stack([mean.sum(axes), square.sum(axes)])
    self._count += mean[..., 0].size

  @property
  def mean(self) -> np.ndarray:
    """Mean of each channel."""
    return self._sums[0] / self._count

  @property
  def std(self) -> np.ndarray:
    """Deviation of each channel; a dead one stays finite."""
    variance = self._sums[1] / self._count - np.square(self.mean)
    return np.sqrt(np.maximum(variance, 1e-12))


def check_digests(folder, manifest: dict):
  """Raises `UserError` naming the first file that is not as it was written."""
  files = [manifest["index"], *manifest["shards"]]
  paths = [pathlib.Path(folder) / file["name"] for file in files]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for path, file, found in zip(
      paths, files, pool.map(_digest, paths), strict=True
    ):
      if found != file["digest"]:
        what = "is missing" if found is None else "differs from its digest"
        raise UserError(f"{path} {what}: run prepare again, into a new folder")


def _read_manifest(folder):
  path = folder / MANIFEST
  again = "run prepare again, into a new folder"
  try:
    manifest = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise UserError(
      f"{folder} has no {MANIFEST}: it is not a folder that prepare finished"
    ) from error
  except ValueError as error:
    raise UserError(f"{path} is not valid JSON: {again}") from error
  if manifest.get("layout") != LAYOUT:
    raise UserError(
      f"{path} has layout {manifest.get('layout')} and this version reads "
      f"{LAYOUT}: {again}"
    )
  return manifest


def _shard_name(number):
  return f"shard-{number:05d}.array_record"


def _write_whole(path, text):
  # As `files.write_whole`, which this room may not import.
  temporary = path.with_suffix(".tmp")
  with open(temporary, "w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _open_writer(path):
  # group_size:1, as Grain asks, for reads one record at a time.
  return array_record_module.ArrayRecordWriter(str(path), "group_size:1")


def _write_record(writer, record, moments, number) -> tuple[int, ...]:
  """Writes a record; returns its row of the index."""
  mean, logvar = record["mean"], record["logvar"]
  if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
    raise ValueError(f"record {number} has latents that are not finite")
  moments.add(mean, logvar)
  caption = record["caption"].encode()
  arrays = {**record, "caption": np.frombuffer(caption, np.uint8)}
  # safetensors writes memory as it lies, so strides must be those of C.
  arrays = {k: np.asarray(v, order="C") for k, v in arrays.items()}
  writer.write(safetensors.numpy.save(arrays))
  return (*mean.shape[:3], len(tokenize.encode(record["caption"])))


def _digest(path) -> str | None:
  # As `manifest.digest_file`, which this room may not import.
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except FileNotFoundError:
    return None


def _token_sizes(sizes_n4, patch_size, max_text) -> np.ndarray:
  odd = np.flatnonzero((sizes_n4[:, :3] % np.array(patch_size)).any(axis=1))
  if len(odd):
    shape = "x".join(map(str, sizes_n4[odd[0], :3]))
    raise UserError(
      f"sample {odd[0]} of {shape} frames, height and width does not divide "
      f"into patches of {'x'.join(map(str, patch_size))}: set patch_size"
    )
  patch_volume = functools.reduce(operator.mul, patch_size)
  tokens = sizes_n4[:, :3].prod(axis=1) // patch_volume
  text = np.minimum(sizes_n4[:, 3], max_text)
  return np.stack([tokens, text], axis=1)
