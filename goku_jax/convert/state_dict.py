"""Weights that torch's users pass on as one file: a dict of tensors by name.

Nothing in such a file is run: a .pth, which is a pickle, is read after its
digest matched, and torch takes tensors from it and no code.
"""

import pathlib
import warnings
from collections.abc import Callable

import numpy as np
import safetensors
import safetensors.numpy

from goku_jax import files, trees
from goku_jax.convert import tensors
from goku_jax.typing import UserError

# In torch's words, what `ConvUnit` has beside its kernel.
NORM = {
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
COUNT = ".bn.num_batches_tracked"  # of no use, and not in every copy


def read(source, origin: str, sha256: str | None = None) -> tuple[dict, str]:
  """Arrays by name, and the SHA-256 of the file.

  Args:
    source: a .safetensors; any other file is read as torch's.
    origin: what the file is and who has it, for whom it is missing.
    sha256: the digest that the file must have; a .safetensors goes without.

  Raises:
    UserError: the file is missing, another, cut short, or no dict of tensors.
  """
  path = pathlib.Path(source)
  try:
    digest = files.digest_file(path)
  except OSError as error:
    raise UserError(
      f"--source={path}: {error.strerror}. It should be {origin}"
    ) from error
  if sha256 and digest != sha256.lower():
    raise UserError(f"{path} has the sha256 {digest}, not --sha256={sha256}")
  if path.suffix != ".safetensors":
    if not sha256:
      raise UserError(
        f"{path} is a pickle, which may hold code: give --sha256=DIGEST as its"
        f" publisher tells it (this file has {digest}), or a .safetensors"
      )
    return _read_torch(path), digest
  try:
    return safetensors.numpy.load_file(path), digest
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{path} is cut short or not safetensors: {error}"
    ) from error


def _read_torch(path):
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f"{path} is read with torch, which is not installed: install "
      "goku-jax[parity], or give the same tensors as .safetensors"
    ) from error
  try:
    with warnings.catch_warnings():  # the error says it
      warnings.simplefilter("ignore")
      found = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # a broken pickle raises anything
    raise UserError(
      f"{path} is cut short, or has more in it than tensors, as TorchScript "
      f"and pickled modules have ({type(error).__name__})"
    ) from error
  is_flat = isinstance(found, dict) and all(
    isinstance(name, str) and isinstance(x, torch.Tensor)
    for name, x in found.items()
  )
  if not is_flat:
    raise UserError(f"{path} holds something else than tensors by name")
  # numpy has no bfloat16, and torch's float32 holds all of its values.
  return {name: x.detach().float().numpy() for name, x in found.items()}


def to_tree(found: dict, abstract: dict, place_of: Callable) -> dict:
  """A tree of ours in float32; the counts of batch norms are left out.

  Args:
    found: arrays by name.
    abstract: our tree as shapes.
    place_of: as of `place_fn`.

  Raises:
    UserError: names or shapes are not those of the tree, or one is not finite.
  """
  found = {n: x for n, x in found.items() if not n.endswith(COUNT)}
  tree = tensors.to_tree(found, abstract, place_of)
  for path, x in trees.flatten(tree, "weights").items():
    if not np.isfinite(x).all():
      raise UserError(f"the weights are damaged: {path} has NaN or infinity")
  return tree


def place_fn(abstract: dict, conv: str, heads: dict) -> Callable:
  """Where torch keeps each path of a tree of `ConvUnit`s.

  Args:
    abstract: our tree as shapes, its modules named as theirs.
    conv: their name of the convolution in a unit.
    heads: places of the paths that belong to no unit.
  """
  shapes = trees.shapes(abstract)

  def place_of(path):
    if path in heads:
      return heads[path]
    stem, leaf = path.replace("/", ".").rsplit(".", 1)
    if leaf == "kernel":
      return tensors.Place((f"{stem}.{conv}.weight",), shapes[path][:-2])
    return tensors.Place((f"{stem}.bn.{NORM[leaf]}",))

  return place_of
