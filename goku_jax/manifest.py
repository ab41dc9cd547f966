"""The manifest of a folder: what must be in it, to the byte, and what it means.

A folder is whole when its manifest is and every file in it is as the manifest
says. The manifest is written last, by an atomic rename, and opens with the
digest of all that follows in it, byte for byte:

  {
    "digest": "<sha256 of the text after this line>",
    "files": {"<path>": {"size": 10, "xxh3_128": "..."}, ...},
    ...

Readers ignore the keys that they do not know. The digests of files are there to
find damage, at the speed of memory; they are no defence against forgery.
"""

import concurrent.futures
import hashlib
import json
import pathlib

import xxhash

from goku_jax.files import sync, write_whole

NAME = "manifest.json"


class BrokenError(ValueError):
  """A folder that is not whole: the message names the file and what it has."""


def write(folder, record: dict):
  """Makes `folder` whole: digests of its files, `record`, then the rename.

  Everything is on the disk before the manifest is, so a folder that is whole
  stays so through a power cut.
  """
  folder = pathlib.Path(folder)
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  with concurrent.futures.ThreadPoolExecutor() as pool:
    entries = list(pool.map(describe, files))
  names = [path.relative_to(folder).as_posix() for path in files]
  record = {"files": dict(zip(names, entries, strict=True)), **record}
  body = json.dumps(record, indent=2, allow_nan=False).removeprefix("{") + "\n"
  write_whole(folder / NAME, (_head(body) + body).encode())


def read(folder) -> dict:
  """The record of a folder; its files are not looked at."""
  try:
    text = (pathlib.Path(folder) / NAME).read_bytes().decode()
    body = text[len(_head("")) :]
    if text != _head(body) + body:
      raise BrokenError(f"{NAME} differs from its own digest")
    return json.loads(text)
  except FileNotFoundError as error:
    raise BrokenError(f"{NAME} is missing") from error
  except (OSError, UnicodeDecodeError) as error:
    raise BrokenError(f"{NAME} cannot be read: {error}") from error


def check(folder, files: dict, *, digests=True):
  """Raises `BrokenError` unless the files have these sizes and digests."""
  for line in problems(folder, files, digests=digests).values():
    raise BrokenError(line)


def problems(folder, files: dict, *, digests=True) -> dict[str, str]:
  """What is wrong with the files, a line by name; empty where all are whole.

  Args:
    folder: where they are.
    files: sizes and digests by path.
    digests: whether every byte is read, or sizes alone are compared.
  """
  folder = pathlib.Path(folder)

  def problem(name):
    path, entry = folder / name, files[name]
    try:
      size = path.stat().st_size
      if size != entry["size"]:
        return f"{name} has {size} bytes, not {entry['size']}"
      if digests and _digest(path) != entry["xxh3_128"]:
        return f"{name} differs from its digest"
    except OSError as error:
      return f"{name}: {error.strerror}"
    return None

  with concurrent.futures.ThreadPoolExecutor() as pool:
    lines = zip(files, pool.map(problem, files), strict=True)
    return {name: line for name, line in lines if line}


def describe(path) -> dict:
  """Size and digest of a file, once it is on the disk."""
  sync(path)
  return {"size": path.stat().st_size, "xxh3_128": _digest(path)}


def _digest(path):
  with open(path, "rb") as file:
    return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _head(body):
  digest = hashlib.sha256(body.encode()).hexdigest()
  return f'{{\n  "digest": "{digest}",'
