"""Items in ArrayRecord shards: written in one go, read at random.

A record is the length of its header (4 bytes, little-endian), the header (JSON:
`key`, `captions`, `scores`) and the bytes of the media.
"""

import contextlib
import json
import os
import pathlib
import struct
from collections.abc import Iterable

from array_record.python import array_record_module
from grain.sources import ArrayRecordDataSource

from goku_jax.data.item_readers import (
  Item,
  Problem,
  Source,
  captions_and_scores,
)
from goku_jax.typing import UserError

_LENGTH = struct.Struct("<I")


class Shard:
  """The records of a file of the disk, which is opened when first asked."""

  def __init__(self, path):
    self.path, self._records = pathlib.Path(path), None

  def __len__(self) -> int:
    return self._ask(len, "")

  def __getitem__(self, i: int) -> bytes:
    return self._ask(lambda records: records[i], f"record {i} of ")

  def _ask(self, question, part):
    """The answer, or raises `Problem` where the file is damaged or missing."""
    try:
      if self._records is None:
        self._records = ArrayRecordDataSource([str(self.path)])
      return question(self._records)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
      reason = str(error).split(";")[0]
      what = f"{part}{self.path.name} cannot be read"
      raise Problem(f"{what}: {reason}") from None


class Records(Source):
  """The items of shards, in the order of the shards.

  Keys are unique in a shard, by its writer; those of several are not compared,
  since that would read them whole.

  Args:
    name: as the user wrote it.
    paths: of the shards, local ones.

  Raises:
    UserError: there is no record.
  """

  def __init__(self, name: str, paths: list):
    super().__init__(name)
    self._shards = [Shard(path) for path in paths]
    self._places = []  # shard and record; a shard that is damaged is an item
    for shard in self._shards:
      try:
        self._places += [(shard, i) for i in range(len(shard))]
      except Problem as problem:
        self._places.append((shard, str(problem)))
    if not self._places:
      raise UserError(f"0 records: {name} is empty")

  def __len__(self) -> int:
    return len(self._places)

  def _key(self, i):
    shard, place = self._places[i]
    is_whole = isinstance(place, int)
    return f"{shard.path.name}:{place}" if is_whole else shard.path.name

  def _read(self, i):
    shard, place = self._places[i]
    if isinstance(place, str):
      raise Problem(place)
    return _unframe(shard[place])

  def _identity(self):
    for shard in self._shards:
      path = shard.path
      yield [path.name, path.stat().st_size if path.exists() else -1]


def write_records(path, items: Iterable[Item]) -> int:
  """Writes items to one shard, which appears whole; returns how many.

  Raises:
    ValueError: an item has a problem, or the key of another.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary, keys = path.with_name(f".{path.name}.tmp"), set()
  # group_size:1, as Grain asks, for reads one record at a time.
  writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
  try:
    with contextlib.closing(writer):
      for item in items:
        if item.problem or item.media is None:
          raise ValueError(f"{item.key} cannot be written: {item.problem}")
        if item.key in keys:
          raise ValueError(f"{item.key} is written already")
        keys.add(item.key)
        writer.write(_frame(item))
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return len(keys)


def _frame(item) -> bytes:
  header = {"captions": item.captions, "scores": item.scores}
  header = json.dumps({"key": item.key, **header}, allow_nan=False).encode()
  media = item.media
  if isinstance(media, str):
    media = pathlib.Path(media).read_bytes()
  return _LENGTH.pack(len(header)) + header + media


def _unframe(record: bytes) -> Item:
  try:
    begin = _LENGTH.size + _LENGTH.unpack_from(record)[0]
    header = json.loads(record[_LENGTH.size : begin])
    key, captions, scores = (header[k] for k in ("key", "captions", "scores"))
    captions, scores = captions_and_scores({**scores, "captions": captions})
  except (ValueError, struct.error, KeyError, TypeError):
    raise Problem("is no record of an item") from None
  return Item(key, record[begin:], captions, scores)
