"""Items of WebDataset tars: read by place, never extracted.

Members that share a folder and the name up to its first dot belong together:
`a/7.mp4` has its captions in `a/7.txt` or `a/7.json` of the same tar. The key
of an item is the name of its media member.
"""

import collections
import posixpath
import tarfile
from typing import NamedTuple

from etils import epath

from goku_jax.data.item_readers import (
  MAX_SIDECAR,
  SIDECARS,
  Item,
  Problem,
  Source,
  is_media,
  read_sidecar,
)
from goku_jax.typing import UserError

MAX_MEDIA = 4 * 2**30  # bytes; a member is read whole


class _Member(NamedTuple):
  name: str
  offset: int
  size: int


class _Entry(NamedTuple):
  """An item, or what is wrong in its place."""

  key: str
  tar: epath.Path
  members: tuple[_Member, ...] = ()  # the media, then its sidecars
  problem: str | None = None


class Tars(Source):
  """The media of tars, in the order of the tars and of their members.

  Headers are read once. A tar that ends early gives the items before that, and
  one with a problem; of two members with one name the first is used.

  Args:
    name: as the user wrote it.
    paths: of the tars.

  Raises:
    UserError: there is no media, and nothing wrong either.
  """

  def __init__(self, name: str, paths: list[epath.Path]):
    super().__init__(name)
    self._entries, tar_of = [], {}
    for path in paths:
      entries, ignored = _index(path)
      self.ignored += ignored
      for entry in entries:
        if entry.key in tar_of:
          problem = f"{entry.key} is in {tar_of[entry.key]} already"
          # The number makes a key of its own for the quarantine.
          key = f"{path.name}:{entry.key}:{len(self._entries)}"
          entry = _Entry(key, path, problem=problem)
        tar_of.setdefault(entry.key, path.name)
        self._entries.append(entry)
    if not self._entries:
      raise UserError(f"0 files: {name} holds no video or picture")

  def __len__(self) -> int:
    return len(self._entries)

  def _key(self, i):
    return self._entries[i].key

  def _read(self, i):
    entry = self._entries[i]
    if entry.problem:
      raise Problem(entry.problem)
    media, *sidecars = entry.members
    if media.size > MAX_MEDIA:
      raise Problem(f"has {media.size} bytes, more than {MAX_MEDIA}")
    captions, scores = (), {}
    with entry.tar.open("rb") as file:
      for sidecar in sidecars:
        data = _read_member(file, sidecar, MAX_SIDECAR + 1)
        more = read_sidecar(sidecar.name, data)
        captions, scores = captions + more[0], scores | more[1]
      data = _read_member(file, media, media.size)
    if len(data) < media.size:
      raise Problem(f"{entry.tar.name} ends early")
    return Item(entry.key, data, tuple(dict.fromkeys(captions)), scores)

  def _identity(self):
    for entry in self._entries:
      yield [entry.key, [member.size for member in entry.members]]


def _read_member(file, member, limit):
  file.seek(member.offset)
  return file.read(min(member.size, limit))


def _index(path) -> tuple[list[_Entry], int]:
  """The items of a tar, and how many of its members are none."""
  with path.open("rb") as file:
    members, others, damage = _members(file)
  sidecars = collections.defaultdict(dict)
  for member in members:
    if not is_media(member.name):
      sidecars[_group(member.name)].setdefault(member.name, member)
  media = [member for member in members if is_media(member.name)]
  by_suffix = lambda m: (SIDECARS.index(_suffix(m.name)), m.name)
  entries = [
    _Entry(
      member.name,
      path,
      (member, *sorted(sidecars[_group(member.name)].values(), key=by_suffix)),
    )
    for member in media
  ]
  groups = {_group(member.name) for member in media}
  unused = sum(len(sidecars[group]) for group in sidecars.keys() - groups)
  if damage:
    entries.append(_Entry(path.name, path, problem=f"{path.name} {damage}"))
  return entries, others + unused


def _members(file) -> tuple[list[_Member], int, str | None]:
  """Media and sidecars, how many others there are, and what is damaged.

  What belongs to a member that is cut off is left out.
  """
  total, kept, others, damage = file.seek(0, 2), [], 0, None
  file.seek(0)
  try:
    with tarfile.open(fileobj=file, mode="r:") as tar:
      for info in tar:
        name = posixpath.normpath(info.name)
        if info.isreg() and not info.issparse() and _is_kept(name):
          kept.append(_Member(name, info.offset_data, info.size))
        else:
          others += not info.isdir()
      file.seek(tar.offset)  # tarfile is content with a header that is none
      block = file.read(tarfile.BLOCKSIZE)
      if len(block) < tarfile.BLOCKSIZE:
        damage = "ends early"
      elif block.strip(b"\0"):
        damage = "has no valid header"
  except (tarfile.TarError, ValueError, OverflowError, EOFError):
    damage = "ends early" if kept or others else "is no tar file"
  if kept and kept[-1].offset + kept[-1].size > total:
    cut = _group(kept[-1].name)
    kept = [member for member in kept if _group(member.name) != cut]
  if damage:
    damage += f" after {kept[-1].name}" if kept else ""
  return kept, others, damage


def _is_kept(name):
  hidden = posixpath.basename(name).startswith(".")
  return not hidden and (is_media(name) or _suffix(name) in SIDECARS)


def _group(name):
  folder, base = posixpath.split(name)
  return posixpath.join(folder, base.split(".", 1)[0])


def _suffix(name):
  return posixpath.splitext(name)[1].lower()
