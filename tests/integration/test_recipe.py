"""Every stage of the recipe trains, and hands its weights on to the next."""

import os
import subprocess

import pytest

from goku_jax import config
from goku_jax.prepare.latents import prepare
from goku_jax.train import loop
from tests import runs

SHORT = dict(total_steps=2, save_every_steps=2, show_every_steps=100)


def train(spec, workdir, **changes):
  """Two steps of an experiment at its debug size."""
  found = config.read_config(f"{runs.ROOT}/configs/{spec}")
  with found.unlocked():
    found.update_from_flattened_dict(SHORT)
    found.update_from_flattened_dict(changes)
  workdir.mkdir(exist_ok=True)
  return loop.train(found.lock(), workdir)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
  """Of 64 digits, by an autoencoder that has hardly begun."""
  folder = tmp_path_factory.mktemp("recipe")
  train("digits.py:stage=vae,debug", folder / "vae")
  found = runs.read_config("prepare", vae__workdir=str(folder / "vae"))
  (folder / "latents").mkdir()
  prepare(found, folder / "latents")
  return str(folder / "latents")


STAGES = [
  "t2i.py:debug,text=bytes",
  "joint.py:debug,text=bytes,res=288p",
  "joint.py:debug,text=bytes,res=720p",
  "finetune.py:debug,text=bytes,branch=t2i",
  "finetune.py:debug,text=bytes,branch=t2v",
  "i2v.py:debug,text=bytes,kinds=first",
  "i2v.py:debug,text=bytes,kinds=all",
  "imagenet.py:debug,objective=flow",
  "imagenet.py:debug,objective=ddpm",
  "digits.py:debug",
  "digits.py:debug,given",
]


@pytest.mark.slow
@pytest.mark.parametrize("spec", STAGES)
def test_every_stage_trains(spec, latents, tmp_path):
  more = {"model.patch_size": (1, 2, 2)} if spec.startswith("digits") else {}
  done = train(spec, tmp_path / "run", **{"data.path": latents}, **more)
  assert done["step"] == 2
  assert done["loss"] > 0
  images, clips = "loss_image" in done, "loss_video" in done
  alone = {"t2i.py": (True, False), "i2v.py": (False, True)}
  alone["imagenet.py"] = (True, False)
  alone["finetune.py"] = ("branch=t2i" in spec, "branch=t2v" in spec)
  assert (images, clips) == alone.get(spec.partition(":")[0], (True, True))


def test_image_to_video_begins_at_text_to_video(latents, tmp_path, capsys):
  before = {"data.path": latents}
  train("finetune.py:debug,text=bytes", tmp_path / "t2v", **before)
  before["init_from"] = str(tmp_path / "t2v")
  done = train("i2v.py:debug,text=bytes", tmp_path / "i2v", **before)
  told = capsys.readouterr().out
  assert "2 made anew (transformer.condition.mix.bias," in told
  assert done["step"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_ladder_ends_with_samples_of_each_branch(tmp_path):
  done = subprocess.run(
    ["bash", str(runs.ROOT / "launch/cascade.sh")],
    env=os.environ
    | {"XLA_FLAGS": runs.FLAGS, "STEPS": "6", "OUT": str(tmp_path / "out")},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  samples = {path.name for path in (tmp_path / "out/samples").iterdir()}
  assert samples == {"t2v.mp4", "t2i.png", "i2v.mp4"}
