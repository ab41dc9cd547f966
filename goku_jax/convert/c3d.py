"""C3D of the Inception score of videos, out of TGANv2's files."""

import math
import pathlib

import numpy as np

from goku_jax import files
from goku_jax.convert import state_dict
from goku_jax.convert.tensors import Place
from goku_jax.models.judges import c3d
from goku_jax.typing import UserError

CUT = slice(8, 8 + c3d.SIDE)  # rows and columns of the mean that TGANv2 takes


def read(source, sha256: str | None = None) -> tuple[dict, dict]:
  """Parameters of `C3D`, and what a folder of weights says of them.

  Args:
    source: Chainer's .npz of the layers; the one of the mean clip lies beside.
    sha256: the digest that the former must have.

  Raises:
    UserError: one is missing, another file, or holds something else.
  """
  path = pathlib.Path(source)
  digest = _digest(path)
  if sha256 and digest != sha256.lower():
    raise UserError(f"{path} has the sha256 {digest}, not --sha256={sha256}")
  beside = path.with_name(c3d.MEAN)
  mean_digest, mean = _digest(beside), _mean(beside)
  layers = dict(c3d.abstract_params())
  del layers["mean"]
  tree = state_dict.to_tree(_load(path), layers, _place)
  return {**tree, "mean": mean}, {
    "network": "c3d",
    "source_sha256": digest,
    "mean_sha256": mean_digest,
  }


def _place(path: str) -> Place:
  layer, kind = path.split("/")
  if kind == "bias":
    return Place((f"{layer}/b",))
  return Place((f"{layer}/W",), (3, 3, 3) if layer.startswith("conv") else ())


def _mean(path):
  """Blue, green, red clips [T, H, W, 3] as the network takes them off."""
  shape = (3, c3d.FRAMES, 128, 171)
  found = _load(path).get("mean", np.zeros(0))
  if found.size != math.prod(shape) or not np.isfinite(found).all():
    raise UserError(f"{path} has no finite mean of shape {list(shape)}")
  mean_CTHW = found.reshape(shape)[..., CUT, CUT].astype(np.float32)
  return np.ascontiguousarray(np.moveaxis(mean_CTHW, 0, -1))


def _digest(path):
  try:
    return files.digest_file(path)
  except OSError as error:
    reason = f"{path}: {error.strerror}. It should be {c3d.ORIGIN}"
    raise UserError(reason) from error


def _load(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except Exception as error:  # a broken archive raises anything
    raise UserError(
      f"{path} is cut short or holds more than arrays ({error})"
    ) from error
