"""What every source of items shares, and the items of a folder.

An item is a media file, or its bytes, with captions and scores. A source has
`len`, random access that is safe from several threads and never raises for a
bad item, `name`, `ignored` (files that are no items) and `digest()`.
"""

import decimal
import hashlib
import json
import math
import os
import posixpath
from collections.abc import Iterable, Iterator
from typing import NamedTuple, SupportsIndex

from etils import epath

from goku_jax.typing import UserError

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")
SUFFIXES = (*VIDEOS, ".png", ".jpg", ".jpeg", ".webp")
SIDECARS = (".txt", ".json")
MAX_CAPTION = 64 * 1024  # bytes of UTF-8
MAX_SIDECAR = 1024 * 1024  # bytes; no more of a file is read for captions


class Item(NamedTuple):
  """A media file with what is known of it."""

  key: str  # unique in its source, and the same wherever the source lies
  media: str | bytes | None  # absolute path, or the encoded bytes
  captions: tuple[str, ...] = ()  # variants in a fixed order; () if missing
  scores: dict[str, float] = {}  # finite numbers that came along  # noqa: RUF012
  problem: str | None = None  # why it cannot be used; `media` is None then


class Problem(Exception):  # noqa: N818 (no error: it becomes an item)
  """Why one item cannot be used."""


class Source:
  """Random access to items (Grain's data source protocol).

  A reader gives `__len__`, `_key`, `_read` and `_identity`.
  """

  label, classes = None, ()  # the score that is a class, and names of these

  def __init__(self, name: str, *, ignored: int = 0):
    self.name, self.ignored = name, ignored

  def __len__(self) -> int:
    raise NotImplementedError

  def __getitem__(self, index: SupportsIndex) -> Item:
    """An item; one that cannot be used has its `problem` set."""
    i = range(len(self))[index]
    try:
      return self._read(i)
    except Problem as problem:
      reason = str(problem)
    except OSError as error:
      reason = f"cannot be read: {error.strerror or error}"
    return Item(self._key(i), None, problem=reason)

  def __iter__(self) -> Iterator[Item]:
    return (self[i] for i in range(len(self)))

  def key(self, index: SupportsIndex) -> str:
    """The name of an item, without reading it."""
    return self._key(range(len(self))[index])

  def digest(self) -> str:
    """sha256 of what tells this list from another: keys and sizes, mostly."""
    digest = hashlib.sha256()
    for entry in self._identity():
      digest.update(json.dumps(entry).encode() + b"\n")
    return digest.hexdigest()

  def _key(self, i: int) -> str:
    raise NotImplementedError

  def _read(self, i: int) -> Item:
    """The item, or raises `Problem` or `OSError`."""
    raise NotImplementedError

  def _identity(self) -> Iterable:
    raise NotImplementedError


class Tree:
  """Files below a folder of a disk, or of what `etils.epath` reads (gs://)."""

  def __init__(self, root: str):
    self.remote = "://" in root
    self.root = root.rstrip("/") if self.remote else os.path.realpath(root)

  def media(self, relative: str) -> str | bytes:
    """The absolute path of a local file, the bytes of another."""
    if self.remote:
      return self._at(relative).read_bytes()
    return self._inside(relative)

  def head(self, relative: str, limit: int) -> bytes:
    """The first bytes of a file, at most `limit`."""
    if self.remote:
      opened = self._at(relative).open("rb")
    else:
      opened = open(self._inside(relative), "rb")  # noqa: SIM115
    with opened as file:
      return file.read(limit)

  def size(self, relative: str) -> int:
    """Bytes of a file, -1 where there is none."""
    try:
      if self.remote:
        return self._at(relative).stat().length
      return os.path.getsize(os.path.join(self.root, relative))
    except (OSError, ValueError):
      return -1

  def files(self) -> list[str]:
    """Relative paths of all files that are not hidden, sorted.

    Links to folders are not followed: one that leads outside stands here with
    a slash at its end.
    """
    found = []
    for at, folders, names in self._walk():
      folders[:] = [name for name in folders if not name.startswith(".")]
      names = [*names, *(f"{n}/" for n in folders if self._leads_out(at, n))]
      names = [name for name in names if not name.startswith(".")]
      found += [posixpath.join(at, name) for name in names]
    return sorted(found)

  def _walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
    bare = os.fspath
    if self.remote:
      walk = self._at("").walk()
      # What walks a bucket leaves the protocol out.
      bare = lambda path: "/" + os.fspath(path).split("://")[-1].strip("/")
    else:
      walk = os.walk(self.root, onerror=_refuse)
    for at, folders, names in walk:
      relative = posixpath.relpath(bare(at), bare(self.root))
      yield "" if relative == "." else relative, folders, names

  def _leads_out(self, at, name):
    path = os.path.join(self.root, at, name)
    return os.path.islink(path) and not self._holds(os.path.realpath(path))

  def _holds(self, real):
    return os.path.commonpath([self.root, real]) == self.root

  def _inside(self, relative):
    path = os.path.join(self.root, relative)
    real = os.path.realpath(path)
    if not self._holds(real):
      raise Problem(f"{relative} leads outside the folder")
    if not os.path.isfile(real):
      is_there = os.path.lexists(path)
      raise Problem(f"{relative} {'is no file' if is_there else 'is missing'}")
    return path

  def _at(self, relative):
    return epath.Path(self.root) / relative


class Folder(Source):
  """The media below a folder, with the sidecars beside them.

  `a/b.mp4` has its captions in `a/b.txt`, the whole text, or in `a/b.json`; of
  the latter, numbers are scores.

  Args:
    name: as the user wrote it.
    tree: the folder.
    files: relative paths of its files.

  Raises:
    UserError: there is no media.
  """

  def __init__(self, name: str, tree: Tree, files: list[str]):
    self._tree, present = tree, set(files)
    self._media = [
      (path, [s for s in map(_stem(path).__add__, SIDECARS) if s in present])
      for path in files
      if is_media(path) or path.endswith("/")
    ]
    if not self._media:
      raise UserError(f"0 files: {name} holds none of {' '.join(SUFFIXES)}")
    used = {path for media, sidecars in self._media for path in sidecars}
    super().__init__(name, ignored=len(files) - len(self._media) - len(used))

  def __len__(self) -> int:
    return len(self._media)

  def _key(self, i):
    # JSON and logs cannot hold a name that is not UTF-8.
    return self._media[i][0].encode(errors="backslashreplace").decode()

  def _read(self, i):
    path, sidecars = self._media[i]
    if self._key(i) != path:
      raise Problem("its name is not UTF-8")
    captions, scores = (), {}
    for sidecar in sidecars:
      data = self._tree.head(sidecar, MAX_SIDECAR + 1)
      more = read_sidecar(sidecar, data)
      captions, scores = captions + more[0], scores | more[1]
    captions = tuple(dict.fromkeys(captions))
    return Item(path, self._tree.media(path), captions, scores)

  def _identity(self):
    for path, sidecars in self._media:
      yield [[name, self._tree.size(name)] for name in (path, *sidecars)]


def is_media(path: str) -> bool:
  """Whether the suffix is that of a video or picture."""
  return posixpath.splitext(path)[1].lower() in SUFFIXES


def read_sidecar(name: str, data: bytes) -> tuple[tuple[str, ...], dict]:
  """Captions and scores of a .txt or .json file; raises `Problem`."""
  if len(data) > MAX_SIDECAR:
    raise Problem(f"{name} has more than {MAX_SIDECAR} bytes")
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError:
    raise Problem(f"{name} is not UTF-8") from None
  if name.lower().endswith(".txt"):
    return check_captions([text]), {}
  return captions_and_scores(parse_object(name, text))


def parse_object(name: str, text: str) -> dict:
  """A JSON object; raises `Problem` for anything else."""
  try:
    record = json.loads(text)
  except (ValueError, RecursionError):
    raise Problem(f"{name} is not valid JSON") from None
  if not isinstance(record, dict):
    raise Problem(f"{name} is no JSON object")
  return record


def captions_and_scores(record: dict) -> tuple[tuple[str, ...], dict]:
  """Captions and scores of a JSON object or a row.

  Captions are `caption`, then those of `captions`: a list, or an object whose
  values are taken by the order of their names. Other finite numbers are scores.
  """
  many = record.get("captions")
  if isinstance(many, dict):
    many = [many[name] for name in sorted(many)]
  elif not isinstance(many, list | tuple):
    if not _is_missing(many):
      raise Problem("`captions` is neither a list nor an object")
    many = []
  scores = {
    str(name): number
    for name, value in record.items()
    if name not in ("caption", "captions")
    and (number := _number(value)) is not None
  }
  return check_captions([record.get("caption"), *many]), scores


def check_captions(values: Iterable) -> tuple[str, ...]:
  """The captions that say something, each once; raises `Problem`."""
  kept = []
  for value in values:
    if _is_missing(value):
      continue
    if not isinstance(value, str):
      raise Problem(f"a caption is no text but {type(value).__name__}")
    try:
      size = len(value.encode())
    except UnicodeEncodeError:  # surrogates: from \ud800, or bytes kept as such
      raise Problem("a caption is not UTF-8") from None
    if size > MAX_CAPTION:
      raise Problem(f"a caption has {size} bytes, more than {MAX_CAPTION}")
    if "\0" in value:
      raise Problem("a caption holds a NUL character")
    kept.append(value.strip())
  return tuple(dict.fromkeys(filter(None, kept)))


def _is_missing(value):
  return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value):
  if isinstance(value, bool) or not isinstance(
    value, int | float | decimal.Decimal
  ):
    return None
  try:
    number = float(value)
  except OverflowError:
    return None
  return number if math.isfinite(number) else None


def _stem(path):
  return posixpath.splitext(path)[0]


def _refuse(error):
  raise UserError(f"{error.filename} cannot be listed: {error.strerror}")
