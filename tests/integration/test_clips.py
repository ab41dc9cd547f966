"""The commands of docs/data.md in small: real files to a drawn clip."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from goku_jax import weights
from goku_jax.data import shards, video_io
from goku_jax.models import vae
from tests import runs

CONFIG = "--config=configs/clips.py:debug"
PREPARE = f"{CONFIG},stage=prepare"


@pytest.fixture(scope="module")
def data(real_videos, tmp_path_factory):
  """Three films with captions, pictures, and a file that is torn."""
  folder = tmp_path_factory.mktemp("data")
  for name, path in real_videos.items():
    shutil.copy(path, folder)
    (folder / f"{name}.txt").write_text(f"a film called {name}")
  for i in range(4):
    frame = np.random.default_rng(i).integers(0, 255, (1, 40, 60, 3), np.uint8)
    video_io.write_video(folder / f"-{i}.png", frame)
  whole = (folder / "bikes.mp4").read_bytes()
  (folder / "torn.mp4").write_bytes(whole[: len(whole) // 2])
  return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vae")
  sizes = runs.read_config("vae").model.to_dict()
  init = jax.jit(vae.make_vae(**sizes).init)
  params = init(jax.random.key(0), np.zeros((1, 1, 16, 16, 3)))["params"]
  about = {"latent_mean": [0.0] * 4, "latent_std": [1.0] * 4}
  weights.save(folder, params, {"model": sizes, **about})
  return folder


@pytest.fixture(scope="module")
def prepare(data, encoder):
  """The command that prepares, but for its workdir."""
  return (
    "prepare",
    PREPARE,
    f"--config.data.path={data}",
    f"--config.vae.workdir={encoder}",
    "--config.data.clips.clips_per_file=3",
    "--config.items_per_shard=2",
  )


@pytest.fixture(scope="module")
def prepared(prepare, tmp_path_factory):
  folder = tmp_path_factory.mktemp("latents")
  more = ("--config.max_dropped=0.2", f"--json={folder}/result.json")
  runs.run_job(*prepare, f"--workdir={folder}", *more)
  return folder


def test_all_is_counted_and_what_is_torn_is_named(prepared):
  result = json.loads((prepared / "result.json").read_text())
  assert (result["items"], result["dropped"]) == (8, 1)
  assert result["records"] == 4 + 3 * 3
  (line,) = (prepared / shards.DROPPED).read_text().splitlines()
  assert json.loads(line)["key"] == "torn.mp4"


@pytest.mark.slow
def test_two_processes_one_of_them_killed_write_the_same(
  prepare, prepared, tmp_path
):
  more = (f"--workdir={tmp_path}", "--num_tasks=2", "--config.max_dropped=1.0")
  one, two = (runs.start_job(*prepare, *more, f"--task={k}") for k in range(2))
  while not (tmp_path / "shard-00000.json").exists():
    assert one.poll() is None
    time.sleep(0.01)
  one.send_signal(signal.SIGKILL)
  one.communicate()
  assert two.communicate(timeout=200)[0]
  assert two.returncode == 0
  if not (tmp_path / shards.MANIFEST).exists():  # it was quick
    out, _ = runs.run_job(*prepare, *more, "--task=0")
    assert "goes on from item" in out
  names = [shards.MANIFEST, shards.INDEX, shards.DROPPED]
  names += [path.name for path in prepared.glob("shard-*")]
  assert len(names) == 3 + 2 * 4
  for name in names:
    ours, theirs = (folder / name for folder in (tmp_path, prepared))
    assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.slow
def test_latents_become_a_model_that_draws(prepared, tmp_path):
  folder, file = tmp_path / "flow", tmp_path / "x.mp4"
  out, _ = runs.run_job(
    "train",
    CONFIG,
    f"--config.data.path={prepared}",
    f"--workdir={folder}",
    "--config.total_steps=2",
    "--config.data.image_share=0.5",
  )
  assert "packs of" in out
  assert (folder / "first_batch.png").exists()
  runs.run_job(
    "sample",
    f"--workdir={folder}",
    "--prompt=a film called bikes",
    "--motion_score=3.14",
    f"--out={file}",
  )
  assert video_io.read_video(file)[0].shape == (5, 32, 32, 3)
  prompt = video_io.read_metadata(file)["prompt"]
  assert prompt == "a film called bikes Motion score: 3.1."


@pytest.mark.slow
def test_files_become_a_model_without_latents_between(data, encoder, tmp_path):
  runs.run_job(
    "train",
    f"{CONFIG},cached=false",
    f"--config.data.path={data}",
    f"--config.vae.workdir={encoder}",
    f"--workdir={tmp_path}",
    "--config.total_steps=2",
    "--config.max_dropped=0.2",
  )
  assert (tmp_path / shards.DROPPED).read_text().count("torn.mp4") == 1
  file = tmp_path / "x.png"
  runs.run_job(
    "sample",
    f"--workdir={tmp_path}",
    "--prompt=noise",
    "--num_frames=1",
    f"--out={file}",
  )
  assert video_io.read_video(file)[0].shape == (1, 32, 32, 3)
