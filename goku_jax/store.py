"""Folders of checkpoints: of a disk, or of Google Cloud Storage (gs://...).

An object store has no folders and no rename: an object appears whole, by one
PUT, and so the last one written, the manifest, is the commit. Orbax reaches the
objects by TensorStore, which finds the credentials itself; all else here goes
through fsspec, on a disk too.
"""

import contextlib
import importlib.util
import os

import fsspec
from etils import epath

from goku_jax.files import sync, write_whole
from goku_jax.typing import UserError

SCHEME = "gs://"
RETRIES = 6  # each after twice the time, from a second on


def is_remote(path) -> bool:
  """Whether a path is that of an object store."""
  return os.fspath(path).startswith(SCHEME)


def open_folder(path) -> epath.Path:
  """The folder of a path, which need not be there.

  Raises:
    UserError: it is on no store that Orbax can write to, or gcsfs is missing.
  """
  path = os.fspath(path)
  if "://" not in path:
    return epath.Path(os.path.abspath(path))
  if not path.removeprefix(SCHEME).strip("/") or not is_remote(path):
    raise UserError(f"{path}: give a folder of a disk or gs://BUCKET/FOLDER")
  if not importlib.util.find_spec("gcsfs"):
    raise UserError(f"{path} needs gcsfs: pip install 'goku_jax[store]'")
  from orbax.checkpoint._src.serialization import tensorstore_utils as orbax

  # Other processes save and remove steps, which a cache would not see.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  # Private, for want of an option: a minute, as gcsfs, and not a quarter of an
  # hour until a store that is gone is one.
  for context in (
    orbax._BASE_TS_CONTEXT,
    orbax._DEFAULT_OCDBT_TS_CONTEXT,
  ):
    context["gcs_request_retries"] = {"max_retries": RETRIES}
  return epath.Path(path)


@contextlib.contextmanager
def reached(path):
  """Tells a store that does not answer from one without an object.

  Raises:
    UserError: the credentials are refused or expired, or nobody is there.
  """
  try:
    yield
  except (FileNotFoundError, ValueError):  # known here, or of the data
    raise
  except Exception as error:  # of gcsfs, aiohttp or google.auth
    if not is_remote(path):
      raise
    cause = " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"{path} cannot be reached: {cause}") from error


def names(folder) -> list[str]:
  """What lies in a folder; nothing where there is none."""
  with reached(folder):
    try:
      return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
      return []


def sizes(folder) -> dict[str, int]:
  """Sizes in bytes of all files below a folder, by path from there, sorted."""
  with reached(folder):
    system, root = fsspec.core.url_to_fs(os.fspath(folder))
    found = system.find(root, detail=True)
  return {
    path.removeprefix(f"{root}/"): entry["size"]
    for path, entry in sorted(found.items())
  }


def write(path, data: bytes):
  """Writes a file so that its name never stands for a part of it."""
  if is_remote(path):
    with reached(path):
      path.write_bytes(data)
  else:
    write_whole(path, data)


def settle(path):
  """Returns once a file, or the names in a folder, outlive a power cut."""
  if not is_remote(path):
    sync(path)
