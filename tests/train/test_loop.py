"""A run that was stopped ends as one that never was, bit for bit."""

import json
import os
import signal

import chex
import numpy as np
import pytest

from goku_jax import checkpoint, job
from goku_jax.data import video_io
from goku_jax.train import __main__ as train_main
from goku_jax.train import loop
from tests import runs

STAGES = ["flow", "vae"]
TOTAL = 4


class CrashError(Exception):
  """A machine that goes away."""


def crash():
  raise CrashError


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def config_of(stage):
  more = dict(data__num_clips=8, data__num_images=8)
  more = more if stage == "vae" else {}
  return runs.read_config(
    stage, total_steps=TOTAL, save_every_steps=2, show_every_steps=100, **more
  )


def interrupt(monkeypatch, stage, at, what):
  """Does `what` when the step `at` has been dispatched, once."""
  calls = []
  make_task = loop.TASKS[stage]

  def interrupted(*args):
    task = make_task(*args)

    def work(batch):
      calls.append(batch)
      if len(calls) == at + 1:
        what()
      return task.work(batch)

    return task._replace(work=work)

  monkeypatch.setitem(loop.TASKS, stage, interrupted)


def train(stage, workdir):
  return train_main.main(config_of(stage), str(workdir))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """An unbroken run of each stage, made when first asked for."""
  made = {}

  def run(stage):
    if stage not in made:
      workdir = tmp_path_factory.mktemp(stage)
      made[stage] = workdir, train(stage, workdir)
    return made[stage]

  return run


def read_lines(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def assert_same_run(one, two):
  one_arrays, two_arrays = runs.read_arrays(one), runs.read_arrays(two)
  assert one_arrays.keys() == {"params", "ema", "opt_state", "step"}
  chex.assert_trees_all_equal(one_arrays, two_arrays)
  losses = lambda w: [(x["step"], x["loss"]) for x in read_lines(w)]
  assert losses(one) == losses(two)
  assert [step for step, _ in losses(one)] == list(range(TOTAL))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_what_it_promises(straight, stage):
  workdir, metrics = straight(stage)
  assert metrics["step"] == TOTAL
  assert np.isfinite(metrics["loss"])
  assert metrics["loss"] == read_lines(workdir)[-1]["loss"]
  for name in ("config.json", "first_batch.png", "curves.png"):
    assert (workdir / name).stat().st_size
  assert (workdir / "shown" / f"{TOTAL:08d}.png").stat().st_size
  video, _ = video_io.read_video(workdir / "shown" / f"{TOTAL:08d}.mp4")
  assert len(video) == 5
  columns = {"flow": 2, "vae": 3}[stage]  # raw, ema; real before them
  assert video.shape[2] == 12 + columns * (200 + 12)
  assert list((workdir / "tensorboard").iterdir())
  assert checkpoint.whole_steps(workdir / "checkpoints") == [2, 4]


@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_and_a_resume_change_nothing(
  straight, stage, tmp_path, monkeypatch, capfd
):
  with monkeypatch.context() as patch:
    interrupt(patch, stage, at=3, what=crash)
    with pytest.raises(CrashError):
      train(stage, tmp_path)
  assert checkpoint.whole_steps(tmp_path / "checkpoints") == [2]
  metrics = train(stage, tmp_path)
  assert "resumed from step 2 of 4" in capfd.readouterr().out
  assert metrics["step"] == TOTAL
  assert_same_run(tmp_path, straight(stage)[0])


def test_a_preemption_saves_at_once_and_resumes(
  straight, tmp_path, monkeypatch
):
  before = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    interrupt(patch, "flow", at=0, what=terminate)
    with pytest.raises(job.Preempted, match="saved at step 1"):
      train("flow", tmp_path)
  assert signal.getsignal(signal.SIGTERM) == before
  assert checkpoint.whole_steps(tmp_path / "checkpoints") == [1]
  train("flow", tmp_path)
  assert_same_run(tmp_path, straight("flow")[0])


def test_a_checkpoint_cut_short_is_passed_over(
  straight, tmp_path, monkeypatch, caplog
):
  with monkeypatch.context() as patch:
    interrupt(patch, "flow", at=0, what=terminate)
    with pytest.raises(job.Preempted):
      train("flow", tmp_path)
  with monkeypatch.context() as patch:
    interrupt(patch, "flow", at=2, what=crash)  # step 3, after the save at 2
    with pytest.raises(CrashError):
      train("flow", tmp_path)
  folder = tmp_path / "checkpoints"
  assert checkpoint.whole_steps(folder) == [1, 2]
  largest = max(
    (p for p in (folder / "2").rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  os.truncate(largest, largest.stat().st_size // 2)
  train("flow", tmp_path)
  assert "checkpoints/2 is not whole" in caplog.text
  assert "step 1 is used instead" in caplog.text
  assert_same_run(tmp_path, straight("flow")[0])


def test_a_run_that_is_done_says_what_it_ended_with(straight):
  workdir, metrics = straight("flow")
  again = train("flow", workdir)
  assert {**again, "seconds": 0} == {**metrics, "seconds": 0}


def test_another_model_is_refused_by_the_field_that_differs(straight):
  workdir, _ = straight("flow")
  other = runs.read_config("flow", total_steps=TOTAL, model__variant="digits")
  says = "model.variant is 'debug' there and 'digits' here"
  with pytest.raises(job.UserError, match=says):
    train_main.main(other, str(workdir))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
  config = runs.read_config(
    "vae", total_steps=TOTAL, show_every_steps=100, loss__kl_weight=float("nan")
  )
  with pytest.raises(FloatingPointError, match="loss of step 0 is nan"):
    train_main.main(config, str(tmp_path))
  assert not checkpoint.whole_steps(tmp_path / "checkpoints")
