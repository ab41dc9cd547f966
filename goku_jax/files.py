"""Files that a job leaves behind: strict JSON, written whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import pathlib
import stat
import tempfile
import uuid

from goku_jax.typing import UserError


def to_json(tree) -> str:
  """`tree` as indented, sorted, strict JSON."""
  return json.dumps(plain(tree), indent=2, sort_keys=True)


def plain(tree):
  """`tree` as strict JSON has it: plain numbers, null for what is not one."""
  if isinstance(tree, dict):
    return {str(key): plain(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [plain(value) for value in tree]
  if hasattr(tree, "tolist"):  # an array of any library
    return plain(tree.tolist())
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def write_json(path, tree):
  """Writes a dict as sorted JSON, all of it or nothing."""
  write_whole(path, (to_json(tree) + "\n").encode())


def write_whole(path, data: bytes):
  """Writes a file so that its name never stands for a part of it."""
  temporary = f"{path}.{uuid.uuid4().hex}.tmp"  # tasks may write it at once
  try:
    with open(temporary, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise
  sync(pathlib.Path(path).parent)


def sync(path):
  """Returns once a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def digest_file(path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path, taken: str):
  """Holds a lock file, which goes with this process, however it ends.

  Raises:
    UserError: `taken`, where another process holds it.
  """
  with open(path, "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(taken) from None
    except OSError as error:  # a file system without locks
      logging.warning("%s cannot be locked: %s", path, error.strerror)
    yield


def make_private(path, name: str):
  """Makes a folder that its user alone can open; refuses any other.

  Args:
    path: of a folder of a disk.
    name: what names it, for the message.
  """
  if "://" in path:
    raise UserError(f"{name}={path}: only a folder of a disk can be private")
  try:
    os.makedirs(path, 0o700, exist_ok=True)
    found = os.stat(path)
  except OSError as error:
    raise UserError(f"{name}={path}: {error.strerror}") from error
  if found.st_uid != os.geteuid():
    raise UserError(
      f"{name}={path} belongs to user {found.st_uid}: name a folder of yours"
    )
  if stat.S_IMODE(found.st_mode) & 0o077:
    raise UserError(f"{name}={path} is open to others: chmod 700 {path}")


def make_folder(path, flag):
  """Makes a folder in which a file can really be made."""
  if "://" in str(path):
    raise UserError(f"--{flag}={path}: only folders of a disk are written to")
  try:
    os.makedirs(path, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path):
      pass
  except OSError as error:
    message = f"--{flag}: cannot write in {path!r}: {error.strerror}"
    raise UserError(message) from error
