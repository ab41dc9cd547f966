"""Folders of prepared latents: how they are written, whole or not at all.

The items of a source are numbered; shard k holds what became of items
[k items_per_shard, (k + 1) items_per_shard), so who writes which shard, and in
what order, changes no byte. Names are all the coordination there is: whoever
finds every shard whole makes the folder whole.

  shard-00000.array_record ...  a record a sample: safetensors of `mean`,
                  `logvar` and, of a clip, the same of its first and its last
                  frame, each encoded alone (`first_mean`, ...); `about`, JSON
                  with the captions and where it is from; `text_0` ..., an
                  embedding of each caption where there is a text encoder;
                  numbers (`digit`, ...)
  shard-00000.json ...          written after it: its digest, the rows of its
                  samples in the index, and the items that were left out
  index.npz       `sizes` int64 [n, 3]: t, h, w of the latents; `pieces` and
                  `tokens` int32 [n, V]: length of each caption in pieces of
                  bytes and in tokens of the text encoder, 0 where there is none
  dropped.jsonl   key and reason of each item that was left out
  manifest.json   written last: a folder without it is not whole

Letters: t h w c of latents, n samples, V captions a sample, E width of text.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterable

import numpy as np
import safetensors.numpy
from array_record.python import array_record_module

from goku_jax.data import tokenize
from goku_jax.typing import UserError

LAYOUT = 4
MANIFEST, INDEX, DROPPED = "manifest.json", "index.npz", "dropped.jsonl"
NULL_TEXT = "null_text.npy"  # float16 [1, E], where there is a text encoder


class ShardWriter:
  """Writes the shards that are not whole yet, and then the rest of the folder.

  Args:
    folder: made if missing.
    items: how many the source has.
    items_per_shard: see above.
    about: more entries for the manifest. Shards that were begun with others
      are written anew.
  """

  def __init__(self, folder, *, items: int, items_per_shard: int, about=None):
    if items_per_shard < 1:
      raise UserError(f"items_per_shard={items_per_shard}: set 1 or more")
    if not items:
      raise UserError("0 items: there is nothing to write")
    self._folder = pathlib.Path(folder)
    self._items, self._each = items, items_per_shard
    self._about = json.loads(json.dumps(about or {}))
    self._checked = {}  # shards found whole, by number

  def __len__(self) -> int:
    """Shards of the whole folder."""
    return -(-self._items // self._each)

  def items(self, number: int) -> range:
    """The items of a shard."""
    return range(self._items)[number * self._each : (number + 1) * self._each]

  def done(self, number: int) -> dict | None:
    """What is known of a shard, None where it is not whole."""
    if number not in self._checked:
      path = self._folder / shard_name(number)
      try:
        found = json.loads(self._about_shard(number).read_text())
        alike = found["begun_with"] == self._begun_with()
        if not alike or digest(path) != found["shard"]["digest"]:
          return None
      except (FileNotFoundError, ValueError, KeyError):
        return None
      self._checked[number] = found
    return self._checked[number]

  def write(self, number: int, records: Iterable[dict], dropped: list[dict]):
    """Writes a shard.

    Args:
      number: of the shard.
      records: dicts of `mean` and `logvar` [t, h, w, c], `about` (a dict with
        `captions`, a list of str), perhaps `first_mean`, `last_logvar`, ...
        [1, h, w, c], `text` (a list of float16 [tokens, E]) and numbers.
      dropped: `key` and `reason` of items that gave no record; looked at when
        `records` has ended.
    """
    self._folder.mkdir(parents=True, exist_ok=True)
    path = self._folder / shard_name(number)
    self._about_shard(number).unlink(missing_ok=True)
    self._checked.pop(number, None)
    rows, moments = [], Moments()
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
      # group_size:1, as Grain asks, for reads one record at a time.
      writer = array_record_module.ArrayRecordWriter(
        str(partial), "group_size:1"
      )
      with contextlib.closing(writer):
        for record in records:
          moments.add(record["mean"], record["logvar"])
          writer.write(_encode_record(record, len(rows)))
          rows.append(_row(record))
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)
    found = {
      "begun_with": self._begun_with(),
      "shard": {
        "name": path.name,
        "records": len(rows),
        "digest": digest(path),
      },
      "rows": rows,
      "moments": moments.sums() if rows else None,
      "dropped": list(dropped),
    }
    _write_whole(self._about_shard(number), json.dumps(found).encode())
    self._checked[number] = found

  def finish(self, settle=lambda statistics: None) -> dict | None:
    """Makes the folder whole once all shards are; None before.

    `settle` receives the statistics of the latents and writes what else
    belongs to the folder, before the manifest.
    """
    numbers = range(len(self))
    if not all(self._about_shard(number).exists() for number in numbers):
      return None  # before the digests of all that others wrote are taken
    found = [self.done(number) for number in numbers]
    if not all(found):
      return None
    rows = [row for x in found for row in x["rows"]]
    dropped = [item for x in found for item in x["dropped"]]
    if not rows:
      raise UserError(f"0 records of {self._items} items: {tell(dropped)}")
    moments = Moments.join(x["moments"] for x in found if x["rows"])
    statistics = {
      "latent_mean": moments.mean.tolist(),
      "latent_std": moments.std.tolist(),
    }
    if (self._folder / MANIFEST).exists():  # another task was faster
      return read_manifest(self._folder)
    settle(statistics)
    for stale in self._folder.glob("shard-*.partial"):  # of tasks killed
      stale.unlink(missing_ok=True)
    lines = [json.dumps(item) + "\n" for item in dropped]
    _write_whole(self._folder / DROPPED, "".join(lines).encode())
    index = self._folder / INDEX
    _write_index(index, rows)
    manifest = {
      "layout": LAYOUT,
      "items": self._items,
      "records": len(rows),
      "dropped": len(dropped),
      "seconds": sum(row["seconds"] for row in rows),
      "shapes": count_shapes(row["size"] for row in rows),
      # Files that Grain could not open have no record.
      "shards": [x["shard"] for x in found if x["rows"]],
      "index": {"name": INDEX, "digest": digest(index)},
      **statistics,
      **self._about,
    }
    text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    _write_whole(self._folder / MANIFEST, text.encode())
    return manifest

  def _about_shard(self, number):
    return (self._folder / shard_name(number)).with_suffix(".json")

  def _begun_with(self):
    return [LAYOUT, self._items, self._each, self._about]


class Moments:
  """Mean and deviation, by channel, of latents drawn from their posteriors."""

  def __init__(self, count: int = 0, sums=((0.0,), (0.0,))):
    self._count, self._sums = count, np.array(sums)

  @classmethod
  def join(cls, parts) -> "Moments":
    """Of all that the `sums()` are of, added in their order."""
    counts, sums = zip(*parts, strict=True)
    total = np.array(sums[0])
    for more in sums[1:]:
      total = total + np.array(more)
    return cls(sum(counts), total)

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


def tell(dropped: list[dict], most: int = 20) -> str:
  """A table of what was left out: each reason, how often, and one example."""
  if not dropped:
    return "none was left out"
  by_reason = collections.defaultdict(list)
  for item in dropped:
    by_reason[item["reason"]].append(item["key"])
  ranked = sorted(by_reason.items(), key=lambda pair: -len(pair[1]))
  rows = [f"{len(keys):>7}  {r} (as {keys[0]})" for r, keys in ranked[:most]]
  if len(ranked) > most:
    rows.append(f"{sum(len(k) for _, k in ranked[most:]):>7}  other reasons")
  return "\n".join(rows)


def check_dropped(
  dropped, total: int, most: float, what="items cannot be used"
):
  """Stops with a table once more than the share `most` of all is left out."""
  if len(dropped) > most * total:
    print(f"left out, of {total}:\n{tell(dropped)}", flush=True)
    raise UserError(
      f"{len(dropped)} of {total} {what}, more than max_dropped={most}: mend"
      " them (the table above says why), or set --config.max_dropped higher"
    )


def count_shapes(sizes) -> dict[str, int]:
  """How many there are of each size, as `5x18x32`, most first."""
  counts = collections.Counter("x".join(map(str, size)) for size in sizes)
  return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def read_manifest(folder) -> dict:
  """The manifest of a whole folder.

  Raises:
    UserError: there is none, or it is of another version.
  """
  path = pathlib.Path(folder) / MANIFEST
  again = "run prepare again, into a new folder"
  try:
    manifest = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError) as error:
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


def check_digests(folder, manifest: dict):
  """Raises `UserError` naming the first file that is not as it was written."""
  files = [manifest["index"], *manifest["shards"]]
  paths = [pathlib.Path(folder) / file["name"] for file in files]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for path, file, found in zip(
      paths, files, pool.map(digest, paths), strict=True
    ):
      if found != file["digest"]:
        what = "is missing" if found is None else "differs from its digest"
        raise UserError(f"{path} {what}: run prepare again, into a new folder")


def shard_name(number: int) -> str:
  """The file of a shard."""
  return f"shard-{number:05d}.array_record"


def digest(path) -> str | None:
  """SHA-256 of a file, None where there is none."""
  # As `files.digest_file`, which this room may not import.
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except FileNotFoundError:
    return None


def _encode_record(record, number) -> bytes:
  about = json.dumps(record["about"]).encode()
  numbers = {k: v for k, v in record.items() if k not in ("about", "text")}
  for key in ("mean", "logvar"):
    if not np.isfinite(record[key]).all():
      raise ValueError(f"record {number} has latents that are not finite")
  texts = {f"text_{i}": x for i, x in enumerate(record.get("text", ()))}
  arrays = {"about": np.frombuffer(about, np.uint8), **numbers, **texts}
  # safetensors writes memory as it lies, so strides must be those of C.
  return safetensors.numpy.save(
    {k: np.asarray(v, order="C") for k, v in arrays.items()}
  )


def _row(record) -> dict:
  """What the index has of a record."""
  captions = record["about"]["captions"]
  return {
    "size": list(record["mean"].shape[:3]),
    "seconds": record["about"].get("seconds", 0.0),
    "pieces": [len(tokenize.encode(caption)) for caption in captions],
    "tokens": [len(x) for x in record.get("text", ())],
  }


def _write_index(path, rows):
  variants = max(len(row["pieces"]) for row in rows)
  lengths = {}
  for key in ("pieces", "tokens"):
    lengths[key] = np.zeros((len(rows), variants), np.int32)
    for i, row in enumerate(rows):
      lengths[key][i, : len(row[key])] = row[key]
  sizes = np.array([row["size"] for row in rows], np.int64)
  partial = path.with_suffix(f".{uuid.uuid4().hex}.partial.npz")
  np.savez(partial, sizes=sizes, **lengths)
  os.replace(partial, path)


def _write_whole(path, data: bytes):
  # As `files.write_whole`, which this room may not import.
  temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
  with open(temporary, "wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
