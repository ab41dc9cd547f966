"""Weights as a folder of safetensors: no code in it, readable anywhere.

  <folder>/model.safetensors  arrays by path, `block/qkv/kernel`
  <folder>/config.json        {"config": {...}, "files": sizes and digests}

config.json is written last and carries the digest of the weights, so that a
folder is whole or refused.
"""

import hashlib
import json
import pathlib

import numpy as np
import safetensors.numpy

from goku_jax import manifest
from goku_jax.files import write_whole
from goku_jax.typing import UserError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save(folder, tree: dict, config: dict):
  """Writes a nested dict of arrays and the config of the model it belongs to.

  Of an older save in the folder, config.json goes first and comes last.
  """
  flat = _flatten(tree)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / CONFIG).unlink(missing_ok=True)
  path = folder / WEIGHTS
  write_whole(path, safetensors.numpy.save(flat))
  record = {"config": config, "files": {WEIGHTS: manifest.describe(path)}}
  text = json.dumps(record, indent=2)
  write_whole(folder / CONFIG, (text + "\n").encode())


def digest(tree: dict) -> str:
  """SHA-256 of the file that `save` would write, in hexadecimal."""
  data = safetensors.numpy.save(_flatten(tree))
  return hashlib.sha256(data).hexdigest()


def exists(folder) -> bool:
  """Whether a folder holds weights, and not the checkpoints of a run."""
  return (pathlib.Path(folder) / WEIGHTS).exists()


def load(folder) -> tuple[dict, dict]:
  """Tree of numpy arrays and config of a folder, its digest checked first."""
  folder = pathlib.Path(folder)
  try:
    record = json.loads((folder / CONFIG).read_bytes())
    config, files = record["config"], record["files"]
    entry = {WEIGHTS: files[WEIGHTS]}
    manifest.check(folder, entry)
  except FileNotFoundError as error:
    raise UserError(
      f"no weights in {folder}: {CONFIG} is missing, which `weights.save` "
      "writes last"
    ) from error
  except manifest.BrokenError as error:
    raise UserError(f"weights in {folder} are damaged: {error}") from error
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"weights in {folder}: {CONFIG} cannot be read ({error!r})"
    ) from error
  return _nest(safetensors.numpy.load_file(folder / WEIGHTS)), config


def _flatten(tree, prefix=""):
  """Paths joined by a slash; only dicts and arrays have a place here."""
  flat = {}
  for key, value in tree.items():
    if not isinstance(key, str) or not key or "/" in key:
      raise ValueError(f"{prefix}{key!r} is not a name for weights")
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{key}/")
    elif hasattr(value, "dtype"):
      # safetensors writes the buffer as it lies: it must lie in C order.
      flat[prefix + key] = np.array(value, order="C")
    else:
      raise ValueError(f"{prefix}{key} is a {type(value).__name__}")
  return flat


def _nest(flat):
  tree = {}
  for path, array in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = array
  return tree
