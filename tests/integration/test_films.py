"""The commands of docs/vae.md in small: films to an autoencoder that is judged.

In one process, where the commands run each in their own.
"""

import json
import runpy

import pytest

from goku_jax import config, weights
from goku_jax.convert import formats
from goku_jax.data import video_io
from goku_jax.eval import __main__ as eval_main
from goku_jax.prepare import __main__ as prepare_main
from goku_jax.sample import restore
from goku_jax.train import __main__ as train_main
from tests import runs

pytestmark = pytest.mark.slow
LPIPS = runpy.run_path(str(runs.ROOT / "tests/golden/lpips.py"))


def read(arg, **changes):
  found = config.read_config(f"{runs.ROOT}/configs/vae.py:{arg}")
  with found.unlocked():
    found.update_from_flattened_dict(
      {key.replace("__", "."): value for key, value in changes.items()}
    )
  return found.lock()


@pytest.fixture(scope="module")
def shots(real_videos, tmp_path_factory):
  folder = tmp_path_factory.mktemp("shots")
  found = read(
    "shots",
    data__path=str(real_videos["bikes"].parent),
    data__shots__resolution=48,
  )
  prepare_main.main(found, str(folder))
  return folder


@pytest.fixture(scope="module")
def trained(shots, tmp_path_factory):
  """Two runs, the second begun at the first one's average."""
  folder = tmp_path_factory.mktemp("runs")
  sizes = dict(
    data__path=str(shots),
    data__videos__held_out=0.5,
    evals__reconstruction__held_out=0.5,
    loss__gan__start_step=0,
  )
  first = read("variant=debug", total_steps=2, **sizes)
  train_main.main(first, str(folder / "first"))
  second = read(
    "variant=debug",
    total_steps=1,
    start=str(folder / "first"),
    data__videos__crop=32,
    **sizes,
  )
  train_main.main(second, str(folder / "second"))
  return folder / "second"


def test_a_run_is_judged_on_the_shots_that_it_held_out(
  trained, shots, tmp_path
):
  weights.save(tmp_path / "lpips", LPIPS["params"](), {})
  result = eval_main.main(
    str(trained),
    "reconstruction",
    "ema",
    out=str(tmp_path / "out"),
    data=str(shots),
    fit=str(shots),
    lpips=str(tmp_path / "lpips"),
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
  formats.convert(str(trained), "run", out, reverse=False, data=str(shots))
  settings = config.read_config(f"{runs.ROOT}/configs/reconstruction.py")
  settings.evals.reconstruction.size = (32, 32)
  judge = lambda workdir, **more: eval_main.main(
    str(workdir),
    "reconstruction",
    "ema",
    config=settings,
    out=str(tmp_path / "out"),
    data=str(shots),
    **more,
  )
  found, wanted = judge(out), judge(trained)
  assert found["autoencoder"] == wanted["autoencoder"]
  assert found["step"] is None
  _, about = weights.load(out)
  assert (
    len(about["latent_std"])
    == restore.restore_vae(out).model.config.latent_channels
  )
