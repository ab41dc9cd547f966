"""The autoencoder on real films: trained, stopped, gone on with, continued."""

import shutil

import chex
import numpy as np
import pytest

from goku_jax import config, weights
from goku_jax.data import video_io
from goku_jax.parallel.mesh import make_mesh
from goku_jax.train import __main__ as train_main
from goku_jax.train import vae_task
from goku_jax.typing import UserError
from tests import runs


@pytest.fixture(scope="module")
def folder(real_videos):
  return str(real_videos["bikes"].parent)


def read(folder, arg="", **overrides):
  found = config.read_config(f"{runs.ROOT}/configs/vae.py:variant=debug{arg}")
  more = dict(data__path=folder, data__videos__held_out=0.5)
  more |= dict(optim__schedule="constant", show_every_steps=100)
  with found.unlocked():
    found.update_from_flattened_dict(
      {k.replace("__", "."): v for k, v in (more | overrides).items()}
    )
  return found.lock()


def train(workdir, folder, arg="", **overrides):
  return train_main.main(read(folder, arg, **overrides), str(workdir))


@pytest.mark.slow
def test_a_game_that_was_stopped_goes_on_alike(tmp_path, folder):
  game = dict(loss__gan__weight=0.1, save_every_steps=2)
  result = train(tmp_path / "straight", folder, total_steps=4, **game)
  assert {"gan_critic", "gan_generator", "gan_weight"} <= result.keys()
  shutil.copytree(tmp_path / "straight", tmp_path / "stopped")
  shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "4")
  train(tmp_path / "stopped", folder, total_steps=4, **game)
  trees = [runs.read_arrays(tmp_path / k) for k in ("straight", "stopped")]
  assert "critic" in trees[0]
  chex.assert_trees_all_equal(*trees)
  shown = tmp_path / "straight" / "shown" / "00000004.png"
  assert video_io.probe(shown)[0] == 1


@pytest.mark.slow
def test_stage_two_goes_on_with_frames_on_all_devices(tmp_path, folder):
  result = train(tmp_path / "one", folder, total_steps=2)
  assert "gan_critic" not in result
  assert "critic" not in runs.read_arrays(tmp_path / "one")
  start = str(tmp_path / "one")
  long = dict(total_steps=1, start=start, optim__learning_rate=0.0)
  result = train(tmp_path / "two", folder, ",stage=2", **long)
  assert np.isfinite(result["psnr_video"])
  assert "psnr_image" not in result
  before, after = (runs.read_arrays(tmp_path / k) for k in ("one", "two"))
  chex.assert_trees_all_equal(before["ema"], after["params"])


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (dict(loss__gan__weight=0.1, loss__gan__width=10), "a multiple of 8"),
    (dict(data__videos__held_out=0.4), "held_out=0.5 judges what training"),
    (dict(data__videos__segment_frames=9), "held_out=0.5 judges what training"),
  ],
)
def test_what_would_train_or_judge_wrongly_is_refused(folder, more, message):
  more = dict(evals__reconstruction__held_out=0.5) | more
  with pytest.raises(UserError, match=message):
    vae_task.make_task(read(folder, **more), make_mesh())


def test_lpips_without_its_network_is_refused(tmp_path, folder):
  with pytest.raises(UserError, match=r"lpips_weight=1\.0 needs the network"):
    train(tmp_path, folder, loss__lpips_weight=1.0)
  weights.save(tmp_path / "other", {"head_0": np.ones(3)}, {})
  more = dict(loss__lpips_weight=1.0, loss__lpips_path=str(tmp_path / "other"))
  with pytest.raises(
    UserError, match="are not of this architecture: 30 missing"
  ):
    train(tmp_path / "run", folder, **more)


def test_a_folder_must_be_given(tmp_path):
  with pytest.raises(UserError, match=r"set --config\.data\.path to a folder"):
    train(tmp_path, None)
