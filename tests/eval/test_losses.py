"""The validation loss: fixed, of held-out samples, whatever shares it."""

import jax
import numpy as np
import pytest

from goku_jax.eval import losses
from goku_jax.parallel import mesh as meshes
from goku_jax.sample import restore
from goku_jax.sample.codec import Codec
from goku_jax.typing import UserError
from tests import runs

SETTINGS = dict(path=None, num_samples=12, bins=3, seed=0)


@pytest.fixture(scope="module")
def model():
  """A model of pixels, at its first parameters."""
  config = runs.read_config()
  model = restore.make_model(config, Codec())
  params = jax.jit(lambda rng: restore.init_params(model, rng))
  return restore.Restored(config, model, params(jax.random.key(0)), Codec(), 0)


@pytest.fixture(scope="module")
def found(model):
  return losses.run(model, **SETTINGS)


def test_an_untrained_model_misses_by_the_size_of_what_it_should_say(
  model, found
):
  # Its velocity is zero, so the loss is the mean square of data - noise: one
  # and that of pixels, whatever t.
  source = losses.open_held_out(model, None)
  sample = lambda i: np.square(source.read(i, 0)["mean"]).mean()
  wanted = np.array([1 + sample(i) for i in range(12)])
  kinds = np.asarray(source.is_video[:12])
  assert found["num_samples"] == 12
  for kind, which in (
    ("all", kinds | True),
    ("video", kinds),
    ("image", ~kinds),
  ):
    assert found["loss"][kind] == pytest.approx(wanted[which].mean(), rel=0.02)
  by_t = np.array(list(found["by_t"]["all"].values()))
  assert list(found["by_t"]["all"]) == ["t=0.167", "t=0.5", "t=0.833"]
  np.testing.assert_allclose(by_t, by_t[0], rtol=1e-5)


def test_it_is_the_same_each_time_and_another_by_another_seed(model, found):
  assert losses.run(model, **SETTINGS) == found
  assert losses.run(model, **SETTINGS | {"seed": 1}) != found


def test_devices_that_share_the_packs_change_nothing(model, found):
  mesh = meshes.make_mesh(replica=1, fsdp=8, sequence=1, tensor=1)
  fns = restore.mesh_fns(model.config, mesh)
  shared = model._replace(
    model=restore.make_model(model.config, Codec(), **fns), ranks=8
  )
  with meshes.use(mesh):
    again = losses.run(shared, **SETTINGS)
  for kind, value in found["loss"].items():
    assert again["loss"][kind] == pytest.approx(value, rel=1e-6)


def test_the_samples_are_of_glyphs_that_training_never_shows(model):
  source = losses.open_held_out(model, None)
  assert source.raw.split == "test"


def test_what_cannot_be_measured_is_refused(model):
  for change, says in (
    (dict(num_samples=0), "num_samples=0 and bins=3 must be 1 or more"),
    (dict(seed=-1), r"evals\.losses\.seed"),
    (dict(path="somewhere"), "has latents, and this run reads pixels"),
  ):
    with pytest.raises(UserError, match=says):
      losses.run(model, **SETTINGS | change)
  nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), model.params)
  with pytest.raises(UserError, match="loss of step 0 is not finite: take"):
    losses.run(model._replace(params=nothing), **SETTINGS)
