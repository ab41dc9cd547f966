"""The commands of docs/vae.md in small: films to an autoencoder, judged."""

import json
import runpy

import pytest

from goku_jax import weights
from goku_jax.data import video_io
from goku_jax.sample import restore
from tests import runs

pytestmark = pytest.mark.slow
LPIPS = runpy.run_path(str(runs.ROOT / "tests/golden/lpips.py"))
EVALS = "config.evals.reconstruction"


def run(name, **flags):
  """A job with its flags by name."""
  runs.run_job(name, *(f"--{key}={value}" for key, value in flags.items()))


def judge(out, **flags):
  """What the suite `reconstruction` printed as its result."""
  result = out / "result.json"
  run("eval", suite="reconstruction", out=out, json=result, **flags)
  return json.loads(result.read_text())


@pytest.fixture(scope="module")
def shots(real_videos, tmp_path_factory):
  folder = tmp_path_factory.mktemp("shots")
  changes = {
    "config.data.path": real_videos["bikes"].parent,
    "config.data.shots.resolution": 48,
  }
  run("prepare", config="configs/vae.py:shots", workdir=folder, **changes)
  return folder


@pytest.fixture(scope="module")
def trained(shots, tmp_path_factory):
  """Two runs, the second begun at the first one's average."""
  folder = tmp_path_factory.mktemp("runs")
  changes = {
    "config": "configs/vae.py:variant=debug",
    "config.data.path": shots,
    "config.data.videos.held_out": 0.5,
    f"{EVALS}.held_out": 0.5,
  }
  first, second = folder / "first", folder / "second"
  run("train", workdir=first, **changes, **{"config.total_steps": 2})
  changes |= {"config.init_from": first, "config.data.videos.crop": 32}
  run("train", workdir=second, **changes, **{"config.total_steps": 1})
  return second


def test_a_run_is_judged_on_the_shots_that_it_held_out(
  trained, shots, tmp_path
):
  weights.save(tmp_path / "lpips", LPIPS["params"](), {})
  result = judge(
    tmp_path / "out",
    workdir=trained,
    data=shots,
    fit=shots,
    lpips=tmp_path / "lpips",
  )
  assert 0 < result["num_clips"] < len(video_io.list_videos(shots))
  for coder in ("autoencoder", "linear"):
    assert {"psnr", "ssim", "lpips", "flicker"} <= result[coder].keys()
    assert result[coder]["lpips"] > 0
  report = json.loads((tmp_path / "out/report.json").read_text())
  assert report["linear"]["lpips"] == result["linear"]["lpips"]
  assert video_io.probe(tmp_path / "out/strip.png")[0] == 1


def test_a_run_becomes_a_folder_that_is_judged_alike(trained, shots, tmp_path):
  out = tmp_path / "weights"
  run("convert", source=trained, format="run", data=shots, out=out)
  settings = {
    "config": "configs/reconstruction.py",
    f"{EVALS}.size": "(32, 32)",
  }
  found, wanted = (
    judge(tmp_path / "out", workdir=workdir, data=shots, **settings)
    for workdir in (out, trained)
  )
  assert found["autoencoder"] == wanted["autoencoder"]
  assert found["step"] is None
  assert wanted["step"] == 1
  _, about = weights.load(out)
  channels = restore.restore_vae(out).model.config.latent_channels
  assert len(about["latent_std"]) == channels
