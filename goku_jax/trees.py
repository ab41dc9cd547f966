"""Trees of arrays as flat dicts, dotted path -> array (`block.qkv.kernel`).

Every leaf is fit to be saved, and what was saved, by us or by others, is held
against what is wanted before it is used, so that an error can name the array.
"""

import math

import jax
import numpy as np
import orbax.checkpoint as ocp

from goku_jax.typing import UserError


def flatten(tree, name: str, *, is_abstract=False) -> dict:
  """Leaves of a tree by dotted path, each one fit to be saved.

  A leaf that Orbax cannot save must not reach it: after the failure the
  process would hang for five minutes at exit.
  """
  if not name.isidentifier():  # it becomes a folder
    raise ValueError(f"{name!r} names a tree: letters, digits and _ only")
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  flat = {}
  for keys, leaf in pairs:
    path = jax.tree_util.keystr(keys, simple=True, separator=".") or "array"
    if path in flat:
      raise ValueError(f"two arrays of {name!r} have the path {path!r}")
    if not is_abstract:
      leaf = _check_leaf(leaf, f"{name}.{path}")
    flat[path] = leaf
  if not flat:
    raise ValueError(f"the tree {name!r} has no arrays")
  return flat


def _check_leaf(leaf, path):
  if isinstance(leaf, np.generic):
    leaf = np.asarray(leaf)
  if not isinstance(leaf, jax.Array | np.ndarray):
    raise ValueError(f"{path} is a {type(leaf).__name__}, not an array")
  is_number = jax.numpy.issubdtype(leaf.dtype, np.number)
  if not is_number and leaf.dtype != np.bool_:
    raise ValueError(f"{path} has the dtype {leaf.dtype}, which is not saved")
  if leaf.size == 0:  # Orbax refuses it
    raise ValueError(f"{path} has no elements: its shape is {leaf.shape}")
  if isinstance(leaf, jax.Array) and leaf.is_deleted():
    raise ValueError(f"{path} was donated before it was saved")
  return leaf


def describe(leaf) -> dict:
  """Shape and dtype of an array, as JSON has them."""
  return {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}


def check_tree(path, name, saved):
  """Raises unless the tree `name` is one of those saved."""
  if name not in saved:
    has = ", ".join(saved)
    raise UserError(f"checkpoint {path} has no tree {name!r}; it has {has}")


def check_arrays(path, name, saved, wanted):
  """Raises unless the tree `name` was saved with the arrays wanted."""
  check_tree(path, name, saved)
  for key in [*wanted, *saved[name]]:
    if key not in saved[name]:
      raise UserError(f"checkpoint {path} has no array {name}.{key}")
    if key not in wanted:
      raise UserError(
        f"checkpoint {path} has an array {name}.{key}, which this model has not"
      )
    have, want = saved[name][key], describe(wanted[key])
    for field in ("shape", "dtype"):
      if have[field] != want[field]:
        raise UserError(
          f"checkpoint {path}: {name}.{key} is saved with the {field} "
          f"{have[field]}, and {want[field]} is wanted"
        )


def read_tree(path, name: str, abstract, restore_gb: float | None = None):
  """The tree `name` of a step, in the structure and sharding of `abstract`.

  At most `restore_gb` GB (1e9 bytes) are read at once; None: a tenth of what
  this process reads, or 0.1, so that the memory for it stays small.
  """
  wanted = flatten(abstract, name, is_abstract=True)
  if restore_gb is None:
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in wanted.values())
    restore_gb = max(0.1, size / jax.process_count() / 1e10)
  arguments = {key: _restore_args(leaf) for key, leaf in wanted.items()}
  arguments = ocp.args.PyTreeRestore(wanted, restore_args=arguments)
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=restore_gb)
  with ocp.Checkpointer(handler) as orbax:
    flat = orbax.restore(path / name, args=arguments)
  leaves = [flat[key] for key in wanted]
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _restore_args(leaf):
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.ArrayRestoreArgs(sharding=sharding)


def path_of(keys) -> str:
  """The path of a leaf, of what `jax.tree.map_with_path` gives for it."""
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def shapes(tree) -> dict:
  """Shapes of arrays, or of abstract ones, by path (`block/qkv/kernel`)."""
  return {
    path_of(keys): tuple(leaf.shape)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def check_shapes(found: dict, wanted: dict, name: str):
  """Raises unless weights have the names and shapes of an architecture.

  Args:
    found: shapes by name.
    wanted: shapes by name.
    name: of the weights.
  """
  wrong = {
    "missing": [n for n in wanted if n not in found],
    "unexpected": [n for n in found if n not in wanted],
    "misshapen": [
      f"{n} {found[n]} for {wanted[n]}"
      for n in wanted
      if n in found and found[n] != wanted[n]
    ],
  }
  told = [f"{len(n)} {what} ({n[0]})" for what, n in wrong.items() if n]
  if told:
    raise UserError(f"{name} are not of this architecture: {', '.join(told)}")
