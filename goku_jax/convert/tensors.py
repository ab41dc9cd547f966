"""Tensors of torch under our names, and back, bit for bit.

A kernel of torch is `[out, in, *window]`, one of ours `[*window, in, out]`; a
window of one position leaves no dim in ours. A vector of torch may have dims
of one behind it.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from goku_jax import files, trees
from goku_jax.files import write_json, write_whole
from goku_jax.typing import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"


class Place(NamedTuple):
  """Where torch keeps one of our arrays."""

  names: tuple[str, ...]  # several lie one behind the other in our last dim
  window: tuple[int, ...] = ()  # of a kernel, or the dims behind a vector


def read(
  source, kind: str, sha256: str | None = None, *, key: str = "_class_name"
) -> tuple[dict, dict]:
  """Tensors by name and the config beside them, of a folder or a file.

  Args:
    source: a folder with one .safetensors and config.json, or the former.
    kind: the class that the config must name.
    sha256: the digest that the file must have.
    key: of the config, under which it names the class.
  """
  path = find(pathlib.Path(source))
  if sha256 and files.digest_file(path) != sha256.lower():
    raise UserError(f"{path} has another digest than --sha256={sha256}")
  beside = path.parent / CONFIG
  try:
    config = json.loads(beside.read_bytes())
    found = config.get(key)
  except (OSError, ValueError, AttributeError) as error:
    raise UserError(
      f"{beside}, which belongs to the weights, cannot be read: {error}"
    ) from error
  if found != kind:
    raise UserError(f"{beside} is of a {found}, not of a {kind}")
  try:
    return safetensors.numpy.load_file(path), config
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{path} is cut short or not safetensors: {error}"
    ) from error


def find(source: pathlib.Path) -> pathlib.Path:
  """The one .safetensors of a folder, or the file itself."""
  if source.is_file():
    return source
  found = sorted(source.glob("*.safetensors"))
  if len(found) == 1:
    return found[0]
  names = ", ".join(path.name for path in found) or "no .safetensors"
  raise UserError(f"--source={source} has {names}: name the one file")


def write(folder, tensors: dict, config: dict):
  """Writes a folder that diffusers loads."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
  write_whole(folder / WEIGHTS, data)
  write_json(folder / CONFIG, config)


def to_tree(tensors: dict, abstract, place_of: Callable[[str], Place]) -> dict:
  """Our tree, in float32.

  Args:
    tensors: of torch, by name.
    abstract: our tree as shapes.
    place_of: of a path of ours, where torch keeps it.

  Raises:
    UserError: names or shapes are not those of the tree.
  """
  wanted = {}
  for path, leaf in _leaves(abstract):
    place = place_of(path)
    wanted |= dict.fromkeys(place.names, _shape(path, leaf.shape, place))
  found = {name: x.shape for name, x in tensors.items()}
  trees.check_shapes(found, wanted, "the weights")

  def take(keys, leaf):
    path = trees.path_of(keys)
    parts = [tensors[n].astype(np.float32) for n in place_of(path).names]
    if _is_kernel(path):
      parts = [np.moveaxis(x, (0, 1), (-1, -2)) for x in parts]
      parts = [x.reshape(*leaf.shape[:-1], -1) for x in parts]
    else:
      parts = [x.reshape(-1) for x in parts]
    return np.ascontiguousarray(np.concatenate(parts, -1))

  return jax.tree.map_with_path(take, abstract)


def to_tensors(tree, place_of: Callable[[str], Place], dtype="float32") -> dict:
  """What `to_tree` made a tree of."""
  tensors = {}
  for path, leaf in _leaves(tree):
    place = place_of(path)
    for name, x in zip(
      place.names, np.split(np.asarray(leaf), len(place.names), -1), strict=True
    ):
      if _is_kernel(path):
        x = x.reshape(*place.window, *x.shape[-2:])
        x = np.moveaxis(x, (-1, -2), (0, 1))
      shape = _shape(path, leaf.shape, place)
      # safetensors writes the buffer as it lies: it must lie in C order.
      x = x.reshape(shape).astype(jax.numpy.dtype(dtype))
      tensors[name] = np.ascontiguousarray(x)
  return tensors


def dtype_of(tensors: dict) -> str:
  """What they were saved in; float32 where that is not one dtype."""
  names = {x.dtype.name for x in tensors.values()}
  return names.pop() if len(names) == 1 else "float32"


def check_settings(config: dict, allowed: dict):
  """Raises for a setting of another network than ours.

  `allowed` has tuples of values; a setting that is not there has the first.
  """
  for name, values in allowed.items():
    value = config.get(name, values[0])
    if value not in values:
      raise UserError(f"config.json has {name}={value!r}: only {values[0]!r}")


def _leaves(tree):
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(trees.path_of(keys), leaf) for keys, leaf in leaves]


def _is_kernel(path):
  return path.endswith("/kernel")


def _shape(path, shape, place):
  """Of each of the tensors that make one array of ours."""
  last = shape[-1] // len(place.names)
  inside = shape[-2:-1] if _is_kernel(path) else ()
  return (last, *inside, *place.window)
