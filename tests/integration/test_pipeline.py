"""The whole chain in small: autoencoder, latents, flow, samples, killed runs.

Jobs run as their users run them, each in a process of its own on one device.
"""

import json
import os
import shutil
import signal
import time

import chex
import numpy as np
import pytest

from goku_jax import checkpoint, weights
from goku_jax.data import video_io
from goku_jax.eval import results
from goku_jax.sample import restore
from tests import runs

CONFIG = "configs/digits.py"
SHORT = ["--config.total_steps=4", "--config.save_every_steps=2"]
CAPTION = "the digit five moves left"
SAMPLE = ["--num_frames=5", "--num_steps=2", "--seed=3"]


def run_train(arg, workdir, *more):
  return runs.run_job(
    "train", f"--config={CONFIG}:{arg}", f"--workdir={workdir}", *SHORT, *more
  )


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vae")
  run_train("stage=vae,debug", folder)
  return folder


@pytest.fixture(scope="module")
def latents(vae, tmp_path_factory):
  folder = tmp_path_factory.mktemp("latents")
  runs.run_job(
    "prepare",
    f"--config={CONFIG}:stage=prepare,debug",
    f"--config.vae.workdir={vae}",
    f"--workdir={folder}",
    f"--json={folder}/result.json",
  )
  return folder


@pytest.fixture(scope="module")
def flow(latents, tmp_path_factory):
  folder = tmp_path_factory.mktemp("flow")
  run_train(
    "debug",
    folder,
    f"--config.data.path={latents}",
    "--config.model.patch_size=(1,1,1)",
  )
  return folder


def test_prepare_writes_what_it_says(latents, vae):
  result = json.loads((latents / "result.json").read_text())
  assert (result["records"], result["shards"]) == (64, 2)
  manifest = json.loads((latents / "manifest.json").read_text())
  assert manifest["vae"]["step"] == 4
  before = {p: p.stat().st_mtime_ns for p in latents.glob("shard-*")}
  out, _ = runs.run_job(
    "prepare",
    f"--config={CONFIG}:stage=prepare,debug",
    f"--config.vae.workdir={vae}",
    f"--workdir={latents}",
  )
  assert "is whole already" in out
  assert before == {p: p.stat().st_mtime_ns for p in latents.glob("shard-*")}


def test_an_autoencoder_is_judged_on_real_films(vae, real_videos, tmp_path):
  """From its run, and the same from its weights in a folder."""
  films = real_videos["bikes"].parent
  settings = "--config.evals.reconstruction."
  options = [
    "--suite=reconstruction",
    f"--data={films}",
    f"--fit={films}",
    "--config=configs/reconstruction.py:protocol=ucf101",
    f"{settings}num_clips=2",
    f"{settings}num_frames=5",
    f"{settings}size=(64,64)",
  ]
  out, _ = runs.run_job(
    "eval", *options, f"--workdir={vae}", f"--out={tmp_path}"
  )
  assert "autoencoder.psnr" in out
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["step"] == 4
  assert (report["num_clips"], report["num_frames"]) == (2, 10)
  # Fitted to these very clips, beside a network of four steps.
  assert report["linear"]["psnr"] > report["autoencoder"]["psnr"] > 5
  sizes = runs.read_config("vae").model.to_dict()
  params = restore.restore_vae(vae).params
  unknown = {"latent_mean": [0.0] * 4, "latent_std": [1.0] * 4}
  weights.save(tmp_path / "weights", params, {"model": sizes, **unknown})
  runs.run_job("eval", *options, f"--workdir={tmp_path}/weights")
  again = json.loads((tmp_path / "weights/report.json").read_text())
  for name in ("autoencoder", "linear", "latents"):
    assert again[name] == report[name]


@pytest.mark.slow
def test_the_commands_of_the_docs_judge_a_run_on_other_devices(
  vae, flow, lpips_weights, tmp_path
):
  """Those of docs/evaluation.md in small."""
  held_out, out = tmp_path / "held_out", tmp_path / "out"
  runs.run_job(
    "prepare",
    f"--config={CONFIG}:stage=prepare,debug",
    f"--config.vae.workdir={vae}",
    "--config.data.digits.split=test",
    "--config.data.digits.num_samples=16",
    f"--workdir={held_out}",
  )

  def judge(suite, config, *more, **settings):
    runs.run_job(
      "eval",
      f"--workdir={flow}",
      f"--suite={suite}",
      f"--config={config}",
      f"--out={out}",
      *(f"--config.evals.{suite}.{k}={v}" for k, v in settings.items()),
      *more,
      XLA_FLAGS=f"{runs.FLAGS} --xla_force_host_platform_device_count=2",
    )

  small = dict(num_samples=16)
  judge(
    "losses", CONFIG, "--weights=ema,params", "--watch", path=held_out, **small
  )
  judge("digits", CONFIG, num_videos=4, num_steps=1)
  weights = dict(weights=lpips_weights, num_steps=1)
  judge("vgg16", "configs/distances.py", **weights, **small)
  records = results.Results(out).records()
  assert [(r["suite"], r["step"], r["weights"]) for r in records] == [
    *(("losses", s, w) for s in (2, 4) for w in ("ema", "params")),
    ("digits", 4, "ema"),
    ("vgg16", 4, "ema"),
  ]
  assert {r["devices"] for r in records} == {2}
  for name in ("report.html", "results.md", "curves/losses.loss.png"):
    assert (out / name).stat().st_size


@pytest.mark.slow
def test_a_prepare_that_was_stopped_goes_on_to_the_same_bytes(vae, tmp_path):
  job = [
    "prepare",
    f"--config={CONFIG}:stage=prepare,debug",
    f"--config.vae.workdir={vae}",
    "--config.data.digits.num_samples=3000",
    "--config.items_per_shard=100",
  ]
  runs.run_job(*job, f"--workdir={tmp_path / 'whole'}")
  files = lambda f: {
    p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()
  }
  for asked, status in (
    (signal.SIGKILL, -signal.SIGKILL),
    (signal.SIGTERM, 75),
  ):
    folder = tmp_path / asked.name
    process = runs.start_job(*job, f"--workdir={folder}")
    while not (folder / "shard-00001.json").exists():
      assert process.poll() is None
      time.sleep(0.001)
    process.send_signal(asked)
    _, err = process.communicate()
    assert process.returncode == status
    assert (b"preempted: what is whole is kept" in err) == (status == 75)
    assert not (folder / "manifest.json").exists()
    first = folder / "shard-00000.array_record"
    written = first.stat().st_mtime_ns
    out, _ = runs.run_job(*job, f"--workdir={folder}")
    assert "goes on from item" in out
    assert first.stat().st_mtime_ns == written
    assert files(folder) == files(tmp_path / "whole")


def test_the_same_seed_draws_the_same_bytes(flow, tmp_path):
  for name in ("a.mp4", "b.mp4"):
    runs.run_job(
      "sample",
      f"--workdir={flow}",
      f"--prompt={CAPTION}",
      f"--out={tmp_path / name}",
      *SAMPLE,
    )
  assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
  video, fps = video_io.read_video(tmp_path / "a.mp4")
  assert (video.shape, fps) == ((5, 16, 16, 3), 8)
  metadata = video_io.read_metadata(tmp_path / "a.mp4")
  assert metadata["prompt"] == CAPTION
  assert (metadata["step"], metadata["seed"]) == (4, 3)


def test_one_frame_of_each_prompt_of_a_file_is_a_picture(flow, tmp_path):
  (tmp_path / "prompts.txt").write_text(f"{CAPTION}\n\nthe digit one\n")
  runs.run_job(
    "sample",
    f"--workdir={flow}",
    f"--prompts={tmp_path}/prompts.txt",
    f"--out={tmp_path}/drawn",
    "--num_frames=1",
    "--num_steps=2",
    f"--json={tmp_path}/result.json",
  )
  result = json.loads((tmp_path / "result.json").read_text())
  files = sorted((tmp_path / "drawn").iterdir())
  assert result["files"] == [str(file) for file in files]
  pictures = [video_io.read_video(file)[0] for file in files]
  assert [p.shape for p in pictures] == [(1, 16, 16, 3)] * 2
  assert np.any(pictures[0] != pictures[1])
  captions = [video_io.read_metadata(file)["prompt"] for file in files]
  assert captions == [CAPTION, "the digit one"]


def test_what_is_not_asked_for_is_as_the_run_says(flow, tmp_path):
  file = tmp_path / "x.mp4"
  runs.run_job(
    "sample", f"--workdir={flow}", f"--prompt={CAPTION}", f"--out={file}"
  )
  sample = json.loads((flow / "config.json").read_text())["sample"]
  metadata = video_io.read_metadata(file)
  for name in ("num_frames", "num_steps", "guidance_scale", "shift", "seed"):
    assert metadata[name] == sample[name]


@pytest.mark.slow
def test_a_config_changes_the_settings_of_the_suite_alone(flow, tmp_path):
  before = (flow / "config.json").read_bytes()
  runs.run_job(
    "eval",
    f"--workdir={flow}",
    f"--out={tmp_path}",
    f"--config={CONFIG}",  # of another, larger model
    "--config.evals.digits.num_videos=3",
    "--config.evals.digits.num_steps=1",
  )
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["generated"]["num_videos"] == 3
  assert (report["num_steps"], report["num_frames"]) == (1, 5)
  assert (flow / "config.json").read_bytes() == before


def test_a_prompt_of_other_bytes_is_one_line(flow, tmp_path):
  _, err = runs.run_job(
    "sample",
    f"--workdir={flow}",
    b"--prompt=five \xff",
    f"--out={tmp_path}/x.mp4",
    *SAMPLE,
    status=2,
  )
  assert "not valid UTF-8 at character 5" in err
  assert err.count("\n") == 1


def test_a_run_of_another_model_is_one_line(flow):
  process = runs.start_job(
    "train", f"--config={CONFIG}:debug", f"--workdir={flow}", *SHORT
  )
  _, err = process.communicate(timeout=100)
  assert process.returncode == 2
  assert b"data.path is" in err
  assert err.count(b"\n") == 1


@pytest.mark.slow
def test_latents_may_move_but_not_change(flow, latents, vae, tmp_path):
  """Under the same path too, where another autoencoder may have written."""
  place, run_dir = tmp_path / "place", tmp_path / "flow"
  shutil.copytree(flow, run_dir)
  shutil.copytree(latents, place)
  again = [
    "debug",
    run_dir,
    f"--config.data.path={place}",
    "--config.model.patch_size=(1,1,1)",
  ]
  run_train(*again)
  before = (run_dir / "config.json").read_bytes()
  assert json.loads(before)["data"]["path"] == str(place)
  shutil.rmtree(place)
  runs.run_job(
    "prepare",
    f"--config={CONFIG}:stage=prepare,debug",
    f"--config.vae.workdir={vae}",
    "--config.vae.step=2",
    f"--workdir={place}",
  )
  process = runs.start_job(
    "train",
    f"--config={CONFIG}:{again[0]}",
    f"--workdir={run_dir}",
    *SHORT,
    *again[2:],
  )
  _, err = process.communicate(timeout=100)
  assert process.returncode == 2, err
  assert b"holds other latents than this run began with" in err
  assert err.count(b"\n") == 1
  assert (run_dir / "config.json").read_bytes() == before


def test_a_refused_start_on_latents_leaves_an_empty_folder(latents, tmp_path):
  _, err = runs.run_job(
    "train",
    f"--config={CONFIG}:debug",
    f"--workdir={tmp_path}",
    f"--config.data.path={latents}",
    "--config.model.patch_size=(1,3,3)",
    status=2,
  )
  assert "does not divide into patches of 1x3x3" in err
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_never_was(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  arguments = [
    "--config.total_steps=60",
    "--config.save_every_steps=10",
    "--config.show_every_steps=1000",
  ]
  job = ["train", f"--config={CONFIG}:debug", *arguments]
  runs.run_job(*job, f"--workdir={whole}")
  process = runs.start_job(*job, f"--workdir={killed}")
  while not checkpoint.whole_steps(killed / "checkpoints"):
    assert process.poll() is None
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert checkpoint.whole_steps(killed / "checkpoints")[-1] < 60
  out, _ = runs.run_job(*job, f"--workdir={killed}")
  assert "resumed from step" in out
  one, two = runs.read_arrays(whole), runs.read_arrays(killed)
  assert one.keys() == two.keys() == {"params", "ema", "opt_state", "step"}
  chex.assert_trees_all_equal(one, two)


@pytest.mark.slow
def test_a_model_of_classes_alone_is_trained_and_drawn(tmp_path):
  flow, file = tmp_path / "flow", tmp_path / "five.png"
  run_train("debug,condition=class", flow, "--config.total_steps=2")
  draw = ["sample", f"--workdir={flow}", f"--out={file}", "--num_frames=1"]
  draw += ["--num_steps=2"]
  runs.run_job(*draw, "--class_label=5")
  assert video_io.read_video(file)[0].shape == (1, 16, 16, 3)
  assert video_io.read_metadata(file)["class_label"] == 5
  _, err = runs.run_job(*draw, f"--prompt={CAPTION}", status=2)
  assert "this model reads no text" in err
  assert err.count("\n") == 1
