"""The commands of docs/vae.md in small: films to an autoencoder, judged."""

import json
import runpy
import subprocess
import sys

import pytest

from goku_jax import weights
from goku_jax.data import video_io
from goku_jax.sample import restore
from tests import runs

pytestmark = pytest.mark.slow
LPIPS = runpy.run_path(str(runs.ROOT / "tests/golden/lpips.py"))
EVALS = "config.evals.reconstruction"


def run(job, **flags):
  """A job in a process of its own; fails where it does."""
  settings = [f"--{name}={value}" for name, value in flags.items()]
  command = [sys.executable, "-m", f"goku_jax.{job}", *settings]
  subprocess.run(command, cwd=runs.ROOT, check=True)


def judge(out, **flags):
  """The report of the suite `reconstruction`."""
  run("eval", suite="reconstruction", out=out, **flags)
  return json.loads((out / "report.json").read_text())


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
  changes |= {"config.start": first, "config.data.videos.crop": 32}
  run("train", workdir=second, **changes, **{"config.total_steps": 1})
  return second


def test_a_run_is_judged_on_the_shots_that_it_held_out(
  trained, shots, tmp_path
):
  weights.save(tmp_path / "lpips", LPIPS["params"](), {})
  report = judge(
    tmp_path / "out",
    workdir=trained,
    data=shots,
    fit=shots,
    lpips=tmp_path / "lpips",
  )
  assert 0 < report["num_clips"] < len(video_io.list_videos(shots))
  for coder in ("autoencoder", "linear"):
    assert {"psnr", "ssim", "flicker"} <= report[coder].keys()
    assert report[coder]["lpips"] > 0
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
