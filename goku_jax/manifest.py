"""The manifest of a folder: what must be in it, to the byte, and what it means.

A folder is whole when its manifest is and every file in it is as the manifest
says. The manifest is written last, by an atomic rename or, on an object store,
by one PUT, and opens with the digest of all that follows in it, byte for byte:

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

import xxhash
from etils import epath

from goku_jax import store

NAME = "manifest.json"


class BrokenError(ValueError):
  """A folder that is not whole: the message names the file and what it has."""


def write(folder, record: dict, files: dict | None = None):
  """Makes `folder` whole: digests of its files, `record`, then the manifest.

  Everything is on the disk before the manifest is, so a folder that is whole
  stays so through a power cut.

  Args:
    folder: with all its files.
    record: as JSON has it.
    files: what `describe_files` says of all of them; None: it is asked.
  """
  folder = epath.Path(folder)
  if files is None:
    files = describe_files(folder, store.sizes(folder))
  record = {"files": dict(sorted(files.items())), **record}
  body = json.dumps(record, indent=2, allow_nan=False).removeprefix("{") + "\n"
  store.write(folder / NAME, (_head(body) + body).encode())


def read(folder) -> dict:
  """The record of a folder; its files are not looked at."""
  try:
    with store.reached(folder):
      text = (epath.Path(folder) / NAME).read_bytes().decode()
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
  folder = epath.Path(folder)
  found = store.sizes(folder)

  def problem(name):
    entry, size = files[name], found.get(name)
    if size is None:
      return f"{name} is missing"
    if size != entry["size"]:
      return f"{name} has {size} bytes, not {entry['size']}"
    try:
      if digests and describe(folder / name) != entry:
        return f"{name} differs from its digest"
    except OSError as error:
      return f"{name}: {error.strerror or 'it is gone'}"
    return None

  with concurrent.futures.ThreadPoolExecutor() as pool:
    lines = zip(files, pool.map(problem, files), strict=True)
    return {name: line for name, line in lines if line}


def describe_files(folder, names) -> dict[str, dict]:
  """Size and digest of some files below a folder, by name."""
  folder, names = epath.Path(folder), list(names)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    entries = pool.map(lambda name: describe(folder / name), names)
    return dict(zip(names, entries, strict=True))


def describe(path) -> dict:
  """Size and digest of a file, once it is on the disk."""
  store.settle(path)
  with store.reached(path), epath.Path(path).open("rb") as file:
    digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    return {"size": file.tell(), "xxh3_128": digest}


def _head(body):
  digest = hashlib.sha256(body.encode()).hexdigest()
  return f'{{\n  "digest": "{digest}",'
