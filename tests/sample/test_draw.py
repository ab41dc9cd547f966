"""Drawing from a run: what it does not take is one line, as is no run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax import config, job, manifest
from goku_jax.sample import draw, restore
from tests import runs

CAPTION = "the digit five moves left"
SETTINGS = dict(num_frames=5, num_steps=1, guidance_scale=1.0, seed=0)


@pytest.fixture(scope="module")
def run(flow_run):
  return restore.restore(flow_run)


def test_videos_have_the_size_of_training_or_the_one_asked_for(run):
  (video,) = draw.draw(run, [CAPTION], **SETTINGS)
  assert video.shape == (5, 16, 16, 3)
  assert video.dtype == np.uint8
  (video,) = draw.draw(run, [CAPTION], size=(8, None), **SETTINGS)
  assert video.shape == (5, 8, 16, 3)


def test_a_model_that_draws_no_numbers_is_refused(run):
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), run.params)
  with pytest.raises(
    job.UserError, match="sample 7 has numbers that are not fini"
  ):
    draw.draw(run._replace(params=broken), [CAPTION], indices=[7], **SETTINGS)


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ({"num_frames": 16}, "nearest are 13 and 17"),
    ({"size": (18, None)}, "height=18 is not a multiple of 4"),
    ({"size": (None, 2)}, "width=2 is not a multiple of 4"),
    ({"size": (0, None)}, "height=0 is not a multiple of 4"),
    ({"solver": "rk4"}, "solver='rk4': this model was trained for euler"),
    ({"num_steps": 0}, "num_steps=0: set 1"),
    ({"shift": 0.0}, "shift=0.0: set"),
    ({"captions": ["a" * 10_000]}, "has 2501 tokens"),
  ],
)
def test_what_the_model_does_not_take_is_said(run, settings, says):
  captions = settings.get("captions", [CAPTION])
  settings = {k: v for k, v in settings.items() if k != "captions"}
  with pytest.raises(job.UserError, match=says):
    draw.draw(run, captions, **SETTINGS | settings)


def test_a_folder_without_a_run_or_a_checkpoint_is_said(flow_run, tmp_path):
  with pytest.raises(job.UserError, match="holds no run"):
    restore.restore(tmp_path)
  (tmp_path / "config.json").write_bytes(
    (flow_run / "config.json").read_bytes()
  )
  with pytest.raises(job.UserError, match="no whole checkpoint: train first"):
    restore.restore(tmp_path)
  with pytest.raises(job.UserError, match="weights='emma' is not one of"):
    restore.restore(flow_run, weights="emma")
  with pytest.raises(job.UserError, match="whole steps"):
    restore.restore(flow_run, step=7)


def test_an_autoencoder_cannot_be_sampled(tmp_path):
  config.save_config(tmp_path, runs.read_config("vae"))
  with pytest.raises(job.UserError, match="run of stage=vae; this needs"):
    restore.restore(tmp_path)


def test_raw_and_averaged_parameters_are_told_apart(flow_run):
  arrays = runs.read_arrays(flow_run)
  checkpoint = flow_run / "checkpoints" / "4"
  for name in restore.WEIGHTS:
    found = restore.restore(flow_run, weights=name)
    assert found.weights == name
    assert found.digest == manifest.read(checkpoint)["digest"]
    kernel = found.params["transformer"]["patch_in"]["kernel"]
    want = arrays[name]["transformer.patch_in.kernel"]
    np.testing.assert_array_equal(kernel, want)
