"""LPIPS is the published formula, has slopes everywhere, and checks weights."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models.judges.lpips import LPIPS

FOLDER = pathlib.Path(__file__).parents[2] / "golden"
SCRIPT = runpy.run_path(str(FOLDER / "lpips.py"))


@pytest.fixture(scope="module")
def params():
  return jax.device_put(SCRIPT["params"]())


def distances(params):
  fn = jax.jit(LPIPS().apply)
  return np.asarray(fn({"params": params}, *SCRIPT["images"]()))


def test_frozen_distances_are_met(params):
  frozen = json.loads((FOLDER / "lpips.json").read_text())
  np.testing.assert_allclose(distances(params), frozen, atol=1e-5)


@pytest.mark.parity
def test_torch_gives_the_same_now(params):
  np.testing.assert_allclose(
    distances(params), SCRIPT["reference"](), atol=1e-5
  )


@pytest.mark.slow
def test_a_featureless_image_has_a_slope(params):
  """The length of no feature at all has none by itself."""
  dead = jax.tree.map(lambda x: x, params)
  dead["vgg"]["conv_12"] = jax.tree.map(
    lambda x: -jnp.abs(x), dead["vgg"]["conv_12"]
  )
  image = jnp.zeros((1, 16, 16, 3))
  loss = lambda x: LPIPS().apply({"params": dead}, x, image + 0.5).sum()
  assert np.isfinite(jax.jit(jax.grad(loss))(image)).all()
