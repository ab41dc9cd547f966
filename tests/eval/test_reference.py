"""Files of reference statistics: the published are read, others refused."""

import numpy as np
import pytest

from goku_jax.eval import reference, statistics
from goku_jax.typing import UserError


@pytest.fixture
def draw():
  return np.random.default_rng(0)


@pytest.fixture
def gaussians(draw):
  return [statistics.fit(draw.normal(size=(40, d))) for d in (6, 4)]


def save(path, pool, spatial=None, **arrays):
  """A file as ADM's evaluator and FID's tools have it."""
  arrays |= {"mu": pool.mean, "sigma": pool.covariance}
  if spatial:
    arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
  np.savez(path, **arrays)


def test_a_published_file_is_read(tmp_path, gaussians, draw):
  path = tmp_path / "adm.npz"
  pool, spatial = gaussians
  images = draw.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
  save(path, pool, spatial, arr_0=images)
  found = reference.load(path, 6, 4)
  for one, two in ((found.pool, pool), (found.spatial, spatial)):
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.covariance, two.covariance)
  np.testing.assert_array_equal(reference.load_images(path), images)


def test_statistics_in_float32_by_others_are_read(tmp_path, gaussians):
  path, (pool, _) = tmp_path / "fid.npz", gaussians
  mean, covariance = (
    x.astype(np.float32) for x in (pool.mean, pool.covariance)
  )
  np.savez(path, mu=mean, sigma=covariance)
  found = reference.load(path, 6)
  assert found.pool.covariance.dtype == np.float64
  assert found.spatial is None
  assert statistics.frechet_distance(found.pool, pool) < 1e-6


@pytest.mark.parametrize(
  ("arrays", "words"),
  [
    ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "holds arr_0, and not mu"),
    ({"mu": np.zeros(6), "sigma": np.eye(6)}, "and not mu_s, sigma_s"),
    ({}, "holds nothing"),
    ({"mu": np.zeros(5), "sigma": np.eye(5)}, "has 5 numbers .* have 6"),
    ({"mu": np.zeros(6), "sigma": np.eye(5)}, "no mean and covariance"),
    ({"mu": np.zeros((6, 1)), "sigma": np.eye(6)}, "no mean and covariance"),
    ({"mu": np.zeros(6), "sigma": np.tri(6)}, "sigma is not a covariance"),
    ({"mu": np.zeros(6), "sigma": -np.eye(6)}, "sigma is not a covariance"),
    ({"mu": np.zeros(6), "sigma": np.full((6, 6), np.nan)}, "is not finite"),
    ({"mu": np.full(6, np.inf), "sigma": np.eye(6)}, "mu or sigma is not fini"),
    ({"mu": np.array(["a"] * 6), "sigma": np.eye(6)}, "are not floats"),
    ({"mu": np.array([None] * 6), "sigma": np.eye(6)}, "not an .npz file"),
  ],
)
def test_another_layout_is_refused(tmp_path, arrays, words):
  path = tmp_path / "file.npz"
  np.savez(path, **arrays)
  spatial = {"spatial_width": 4} if "mu_s" in words else {}
  with pytest.raises(UserError, match=words) as error:
    reference.load(path, 6, **spatial)
  assert "\n" not in str(error.value)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_what_is_no_archive_is_refused(tmp_path, content):
  path = tmp_path / "file.npz"
  path.write_bytes(content)
  with pytest.raises(UserError, match="is not an"):
    reference.load(path, 6)


def test_a_missing_file_and_a_single_array_are_refused(tmp_path):
  with pytest.raises(UserError, match="no such file"):
    reference.load(tmp_path / "none.npz", 6)
  np.save(tmp_path / "one.npy", np.zeros(6))
  with pytest.raises(UserError, match="is not an"):
    reference.load(tmp_path / "one.npy", 6)


def test_images_of_another_kind_are_refused(tmp_path, gaussians):
  path = tmp_path / "adm.npz"
  save(path, gaussians[0])
  with pytest.raises(UserError, match="not arr_0"):
    reference.load_images(path)
  np.savez(path, arr_0=np.zeros((2, 4, 4, 3), np.float32))
  with pytest.raises(UserError, match="float32"):
    reference.load_images(path)
