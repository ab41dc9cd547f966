"""Files of reference statistics, in the layouts that are published.

An .npz with the mean `mu` [D] and the covariance `sigma` [D, D] of FID's
features; ADM's batches have `mu_s`, `sigma_s` of sFID's too, and some the
images `arr_0` uint8 [N, H, W, 3] of precision and recall.
"""

import dataclasses
import zipfile

import numpy as np

from goku_jax.eval import statistics
from goku_jax.typing import UserError


@dataclasses.dataclass(frozen=True)
class Reference:
  """The statistics in a file.

  Args:
    pool: of the features of FID.
    spatial: of those of sFID, where they were asked for.
  """

  pool: statistics.Gaussian
  spatial: statistics.Gaussian | None


def load(path, width: int, spatial_width: int | None = None) -> Reference:
  """The statistics of a file.

  Args:
    width: D of the features that they will be compared with.
    spatial_width: D of sFID's; None where they are not wanted.

  Raises:
    UserError: no such file, another layout, or another D.
  """
  names = ["mu", "sigma"]
  if spatial_width is not None:
    names += ["mu_s", "sigma_s"]
  arrays = _read(path, names)
  spatial = None
  if spatial_width is not None:
    spatial = _gaussian(path, arrays, "mu_s", "sigma_s", spatial_width)
  pool = _gaussian(path, arrays, "mu", "sigma", width)
  return Reference(pool, spatial)


def has_images(path) -> bool:
  """Whether a file of statistics has the images of precision and recall."""
  with zipfile.ZipFile(path) as file:
    return "arr_0.npy" in file.namelist()


def load_images(path) -> np.ndarray:
  """The images [N, H, W, 3] of an ADM batch, uint8."""
  images = _read(path, ["arr_0"])["arr_0"]
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise UserError(
      f"{path}: arr_0 is {images.dtype} {images.shape}, not images of uint8"
      " [N, H, W, 3]"
    )
  return images


def _read(path, names) -> dict[str, np.ndarray]:
  """Arrays of a file by name; the others, which may be large, are not read."""
  try:
    # Opened here, since NumPy leaves a broken archive open.
    with (
      open(path, "rb") as stream,
      np.load(stream, allow_pickle=False) as file,
    ):
      found = file.files
      arrays = {name: file[name] for name in names if name in found}
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file of reference statistics") from error
  except (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile),
    *(TypeError, AttributeError),  # a single array, .npy
  ) as error:
    raise UserError(f"{path}: is not an .npz file of arrays") from error
  if missing := [name for name in names if name not in found]:
    raise UserError(
      f"{path}: holds {', '.join(found) or 'nothing'}, and not"
      f" {', '.join(missing)}: give a reference file of the protocol chosen"
    )
  return arrays


def _gaussian(path, arrays, mean_name, covariance_name, width):
  mean, covariance = arrays[mean_name], arrays[covariance_name]
  D = mean.size
  if mean.shape != (D,) or covariance.shape != (D, D):
    raise UserError(
      f"{path}: {mean_name} {mean.shape} and {covariance_name}"
      f" {covariance.shape} are no mean and covariance"
    )
  if width != D:
    raise UserError(
      f"{path}: {mean_name} has {D} numbers and the features have {width}: give"
      " statistics of the same network and layer"
    )
  if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
    raise UserError(f"{path}: {mean_name} and {covariance_name} are not floats")
  mean, covariance = (x.astype(np.float64) for x in (mean, covariance))
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise UserError(f"{path}: {mean_name} or {covariance_name} is not finite")
  asymmetry = np.abs(covariance - covariance.T).max()
  largest = np.abs(covariance).max()
  if asymmetry > 1e-6 * largest or covariance.diagonal().min() < 0:
    raise UserError(f"{path}: {covariance_name} is not a covariance")
  return statistics.Gaussian(mean, covariance)
