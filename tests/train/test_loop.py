"""A run that was stopped ends as one that never was, bit for bit."""

import json
import os
import signal
import types

import chex
import numpy as np
import pytest

from goku_jax import checkpoint, files, job, lines, manifest
from goku_jax.data import digits, video_io
from goku_jax.train import __main__ as train_main
from goku_jax.train import loop, watchdog
from goku_jax.train.goodput import Goodput
from tests import runs

STAGES = ["flow", pytest.param("vae", marks=pytest.mark.slow)]
TOTAL = 4


class CrashError(Exception):
  """A machine that goes away."""


def crash():
  raise CrashError


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def config_of(stage, **more):
  found = dict(total_steps=TOTAL, save_every_steps=2, show_every_steps=100)
  if stage == "vae":  # by the other update rule than the flow
    found |= dict(data__num_clips=8, data__num_images=8, optim__rule="muon")
  return runs.read_config(stage, **found | more)


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
  assert one_arrays.keys() == {
    "params",
    "ema",
    "opt_state",
    "window",
    "step",
  }
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


@pytest.mark.parametrize("stage", STAGES)
def test_no_sample_is_read_before_the_first_step(stage, tmp_path, monkeypatch):
  read, make_task, get = [], loop.TASKS[stage], digits.Digits.__getitem__
  monkeypatch.setattr(
    digits.Digits, "__getitem__", lambda self, i: read.append(i) or get(self, i)
  )

  def make(*args):
    task = make_task(*args)
    read.clear()  # those that are shown
    return task._replace(preflight=lambda _: crash())

  monkeypatch.setitem(loop.TASKS, stage, make)
  with pytest.raises(CrashError):
    train(stage, tmp_path)
  assert (tmp_path / "config.json").exists()
  assert not read


@pytest.mark.slow
def test_pictures_that_fail_cost_no_step(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(loop, "_show", lambda *_: crash())
    with pytest.raises(CrashError):
      train("flow", tmp_path)
  assert checkpoint.whole_steps(tmp_path / "checkpoints") == [2, TOTAL]


@pytest.mark.slow
def test_curves_are_drawn_before_the_last_save(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(loop, "_draw_curves", lambda *_: crash())
    with pytest.raises(CrashError):
      train("flow", tmp_path)
  assert checkpoint.whole_steps(tmp_path / "checkpoints") == [2]


@pytest.mark.slow
def test_one_process_writes(tmp_path, monkeypatch):
  """Checkpoints apart, which Orbax writes together."""
  monkeypatch.setattr(loop, "_writes", lambda: False)
  assert train("flow", tmp_path)["step"] == TOTAL
  assert [file.name for file in tmp_path.iterdir()] == ["checkpoints"]


def test_rates_count_steps_alone(tmp_path, monkeypatch):
  """Neither the first step, which compiles, nor pictures and saves."""
  now = 0.0
  clock = types.SimpleNamespace(perf_counter=lambda: now)
  monkeypatch.setattr(loop, "time", clock)
  found = {}
  writers = types.SimpleNamespace(write_scalars=found.__setitem__)
  progress = types.SimpleNamespace(update=lambda *_, **__: None)
  config = runs.read_config(total_steps=9)
  with watchdog.Watchdog(**config.watchdog) as dog:
    run = loop.Run(config, tmp_path, None, None, 10.0, None, Goodput(), dog)
  report = loop.Reporter(run, writers, progress, first=3, passed=0)
  metrics = {"loss": 1.0, "grad_norm": 1.0, "skipped": 0.0}
  for step, seconds in ((3, 60.0), (4, 2.0), (5, 4.0)):
    report.add(step, metrics, {}, 10.0, 100)
    now += seconds
  report.flush()
  now += 100.0
  report.restart_clock()
  report.add(6, metrics, {}, 10.0, 100)
  now += 5.0
  report.flush()
  rates = [found[step].get("tokens_per_second") for step in range(3, 7)]
  assert rates == [None, 50.0, 25.0, 20.0]
  assert [found[step].get("mfu") for step in (3, 4)] == [None, 0.5]


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


@pytest.mark.slow
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
  config = config_of("flow")
  config.evals.digits.num_videos = 9  # an evaluator's settings may change
  again = train_main.main(config, str(workdir))
  assert {**again, "seconds": 0} == {**metrics, "seconds": 0}
  assert job.load_config(workdir).evals.digits.num_videos == 9


@pytest.mark.slow
def test_a_cosine_is_not_extended(straight):
  workdir, _ = straight("vae")
  longer = config_of("vae", total_steps=2 * TOTAL)
  says = "total_steps is 4 there and 8 here: the cosine ends there"
  with pytest.raises(job.UserError, match=says):
    train_main.main(longer, str(workdir))


@pytest.mark.slow
def test_a_constant_rate_is_extended_as_if_asked_for_at_once(tmp_path, capfd):
  config_to = lambda total: runs.read_config(
    "vae",
    total_steps=total,
    save_every_steps=2,
    show_every_steps=100,
    optim__schedule="constant",
  )
  extended, whole = tmp_path / "extended", tmp_path / "whole"
  assert train_main.main(config_to(2), str(extended))["step"] == 2
  assert train_main.main(config_to(TOTAL), str(extended))["step"] == TOTAL
  assert "resumed from step 2 of 4" in capfd.readouterr().out
  train_main.main(config_to(TOTAL), str(whole))
  assert_same_run(extended, whole)
  assert job.load_config(extended).total_steps == TOTAL


def test_another_model_is_refused_by_the_field_that_differs(straight):
  workdir, _ = straight("flow")
  other = runs.read_config("flow", total_steps=TOTAL, model__variant="digits")
  says = "model.variant is 'debug' there and 'digits' here"
  with pytest.raises(job.UserError, match=says):
    train_main.main(other, str(workdir))


@pytest.mark.parametrize(
  ("stage", "key", "value", "says"),
  [
    ("flow", "model.variant", "digit", "variant='digit' is not one of"),
    ("flow", "model.dtype", "float31", "dtype='float31' is not one of"),
    ("vae", "model.dtype", "int8", "dtype='int8' is not one of"),
    ("vae", "total_steps", 0, "total_steps=0: set 1"),
    ("vae", "log_every_steps", 0, "log_every_steps=0: set 1"),
    ("vae", "save_every_steps", -1, "save_every_steps=-1: set 1"),
    ("vae", "show_every_steps", 0, "show_every_steps=0: set 1"),
    ("vae", "ema_decay", 1.0, "ema_decay=1.0: set"),
    ("vae", "ema_decay", -0.1, "ema_decay=-0.1: set"),
    ("vae", "more_ema", (0.9, 1.0), r"more_ema=\(0\.9, 1\.0\): set"),
    ("vae", "guards.clip_sigma", -1.0, r"guards\.clip_sigma=-1\.0: set 0"),
    ("vae", "optim.frozen", "(", "optim.frozen='\\(' is no pattern"),
    ("vae", "checkpoint.keep", 0, "keep=0: set 1"),
    ("vae", "guards.bad_steps", 0, r"guards\.bad_steps=0: set 1"),
    ("vae", "guards.sigma", -1.0, r"guards\.sigma=-1\.0: set 0"),
    ("vae", "guards.slow_host", 1.0, r"guards\.slow_host: set more than 1"),
    ("vae", "seed", 2**32, "seed=4294967296: set 0 or more, below"),
    ("vae", "optim.schedule", "linear", "schedule='linear' is not one of"),
    ("vae", "optim.learning_rate", -1e-3, "learning_rate=-0.001: set"),
    ("vae", "optim.warmup_steps", -1, "warmup_steps=-1: set"),
    ("flow", "loss.objective", "score", "objective='score' is not one of"),
    ("flow", "loss.schedule", "sigmoid", "schedule='sigmoid' is not one of"),
    ("flow", "loss.prediction", "x", "prediction='x' is not one of"),
    ("flow", "loss.min_snr", -1.0, r"loss\.min_snr=-1\.0: set 0"),
    ("flow", "loss.time.weights.mode", -1.0, r"weights\.mode=-1\.0: set 0"),
    ("flow", "loss.time.weights.logit_normal", 0.0, "are all 0: set one"),
    ("flow", "loss.time.std", 0.0, r"loss\.time\.std=0\.0: set"),
    ("flow", "loss.time.scale", 2.0, r"scale=2\.0: set -1\.0 to 1\.75"),
    ("flow", "loss.time.shift", 0.0, r"loss\.time\.shift=0\.0: set"),
    ("flow", "loss.time.shift_tokens", -1, "shift_tokens=-1: set 0"),
    ("flow", "loss.caption_drop_rate", 1.5, "drop_rate=1.5 is not between"),
    ("flow", "micro_batches", 0, "micro_batches=0: set 1"),
    ("flow", "micro_batches", 3, "num_packs=8 .* a multiple of 24"),
    ("flow", "data.num_packs", 12, "num_packs=12 .* a multiple of 8"),
    ("vae", "data.num_clips", 4, "num_clips=4 .* a multiple of 8"),
    ("vae", "data.num_images", 4, "num_images=4 .* a multiple of 8"),
    ("vae", "data.num_images", -8, "num_images=-8: set 0"),
    ("vae", "data.num_clips", 0, "num_clips=0: set 1"),
    ("vae", "data.digits.num_samples", 0, "num_samples=0: set 1"),
    ("vae", "optim.clip_norm", -1.0, r"optim\.clip_norm=-1\.0: set"),
    ("flow", "model.num_classes", 9, "num_classes=9 and the data has 10"),
    ("flow", "sample.num_steps", 0, r"config\.sample: num_steps=0: set 1"),
    ("flow", "sample.shift", 0.0, r"config\.sample: shift=0\.0: set"),
    ("flow", "sample.guidance_scale", float("nan"), "guidance_scale=nan: set"),
    ("flow", "sample.seed", -1, "seed=-1: set 0"),
    ("flow", "sample.seed", 2**32, "seed=4294967296: set 0"),
    ("flow", "sample.num_frames", 6, "the nearest are 5 and 9"),
    ("flow", "sample.size", (16, 18), "width=18 is not a multiple of 4"),
    ("flow", "sample.prompts", ("five " * 40,), "has 81 tokens"),
    ("flow", "sample.prompts", (), "there is nothing to draw"),
    ("flow", "sample.class_labels", (1,), "has no classes"),
    ("vae", "data.digits.num_frames", 6, "not 4k.1: the nearest are 5 and 9"),
    ("vae", "data.digits.canvas", 18, "18x18 pixels does not fit the autoenc"),
    ("flow", "data.digits.num_frames", 6, "the nearest are 5 and 9"),
    ("flow", "data.digits.canvas", 18, "does not divide into patches of 1x4x4"),
  ],
)
def test_a_mistake_is_one_line_and_leaves_an_empty_folder(
  tmp_path, stage, key, value, says
):
  wrong = runs.read_config(stage, **{key: value})
  with pytest.raises(job.UserError, match=says) as error:
    train_main.main(wrong, str(tmp_path))
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_model_of_text_from_elsewhere_is_refused(tmp_path):
  wrong = runs.read_config()
  with wrong.unlocked():
    del wrong.model.text
    wrong.model.variant = "2b"
  with pytest.raises(job.UserError, match="embeddings of width 2048"):
    train_main.main(wrong, str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(straight):
  workdir, _ = straight("flow")
  before = (workdir / "config.json").read_bytes()
  wrong = config_of("flow", mesh__replica=3)
  with pytest.raises(job.UserError, match="mesh replica=3"):
    train_main.main(wrong, str(workdir))
  assert (workdir / "config.json").read_bytes() == before


def test_what_a_step_holds_no_sample_of_is_in_no_line(tmp_path, monkeypatch):
  drawn = {}
  curves = loop.video_io.curves
  monkeypatch.setattr(
    loop.video_io,
    "curves",
    lambda path, series: drawn.update(series) or curves(path, series),
  )
  lines = [
    {"step": 0, "loss": 3.0, "loss_image": 2.0},
    {"step": 1, "loss": 2.0, "loss_video": 1.0},
    {"step": 2, "loss": 1.0, "loss_image": 1.0},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text)
  loop._draw_curves(tmp_path)
  assert drawn == {
    "loss": ([0, 1, 2], [3.0, 2.0, 1.0]),
    "loss_image": ([0, 2], [2.0, 1.0]),
    "loss_video": ([1], [1.0]),
  }
  assert (tmp_path / "curves.png").stat().st_size


@pytest.mark.slow
def test_a_run_without_images_says_nothing_of_them(tmp_path):
  config = runs.read_config("vae", total_steps=1, data__num_images=0)
  metrics = train_main.main(config, str(tmp_path))
  (line,) = read_lines(tmp_path)
  for found in (metrics, line):
    assert "psnr_video" in found
    assert not [name for name in found if name.endswith("_image")]


def poison(monkeypatch, bad):
  """Makes what some batches of the data hold no numbers."""
  make_task = loop.TASKS["flow"]

  def poisoned(*args):
    task = make_task(*args)

    def batches(first, *more):
      for number, batch in enumerate(task.batches(first, *more), first):
        if number in bad:
          batch["tokens_BLP"] = np.full_like(batch["tokens_BLP"], np.nan)
        yield batch

    return task._replace(batches=batches)

  monkeypatch.setitem(loop.TASKS, "flow", poisoned)


def read_bad(workdir):
  return lines.read(workdir / "bad_batches" / "0000.jsonl")


def test_a_loss_that_is_never_finite_ends_the_run(tmp_path):
  config = config_of("vae", loss__kl_weight=float("nan"), guards__bad_steps=2)
  message = "2 bad steps in a row, up to step 1: loss nan, grad_norm nan; going"
  with pytest.raises(FloatingPointError, match=message):
    train_main.main(config, str(tmp_path))
  assert not checkpoint.whole_steps(tmp_path / "checkpoints")
  assert [row["batch"] for row in read_bad(tmp_path)] == [0, 1, 2, 3]


def test_a_step_of_bad_numbers_changes_nothing(tmp_path, monkeypatch):
  poison(monkeypatch, {3})
  config = config_of("flow", save_every_steps=1, checkpoint__keep=4)
  train_main.main(config, str(tmp_path))
  before, after = (runs.read_arrays(tmp_path, step) for step in (3, 4))
  assert before.pop("step") != after.pop("step")
  chex.assert_trees_all_equal(before, after)
  assert ["loss" in row for row in read_lines(tmp_path)] == [1, 1, 1, 0]
  assert [row["skipped"] for row in read_lines(tmp_path)] == [0, 0, 0, 1]
  (row,) = read_bad(tmp_path)
  assert (row["step"], row["batch"], row["loss"]) == (3, 3, None)
  index = next(runs.read_task("flow").batches(3))["sample_index_BG"]
  wanted = np.unique(index[index >= 0]).tolist()
  assert row["samples"] == {"sample_index_BG": wanted}


def test_a_run_goes_back_and_past_batches_that_stay_bad(
  tmp_path, monkeypatch, caplog, capfd
):
  poison(monkeypatch, {3, 4, 5})
  config = config_of("flow", total_steps=6, guards__bad_steps=3)
  assert train_main.main(config, str(tmp_path))["step"] == 6
  assert "going back to the last good checkpoint, and on from batch 6" in (
    caplog.text
  )
  # Step 4 fell amid the bad ones and was not saved then.
  assert "resumed from step 2" in capfd.readouterr().out
  folder = tmp_path / "checkpoints"
  positions = [
    manifest.read(folder / str(step))["position"]
    for step in checkpoint.whole_steps(folder)
  ]
  assert positions == [{"step": 4, "batch": 8}, {"step": 6, "batch": 10}]
  assert [line["skipped"] for line in read_lines(tmp_path)] == [0] * 6


def test_a_spike_is_skipped_if_asked(tmp_path, monkeypatch):
  make_task = loop.TASKS["flow"]

  def spiked(*args):
    task = make_task(*args)

    def batches(first, *more):
      for number, batch in enumerate(task.batches(first, *more), first):
        yield {
          **batch,
          "tokens_BLP": batch["tokens_BLP"] * 100 ** (number == 2),
        }

    return task._replace(batches=batches)

  monkeypatch.setitem(loop.TASKS, "flow", spiked)
  config = config_of("flow", guards__sigma=9.0, guards__window=2)
  train_main.main(config, str(tmp_path))
  rows = read_lines(tmp_path)
  assert [row["skipped"] for row in rows] == [0, 0, 1, 0]
  assert rows[2]["loss"] > 100


def test_two_jobs_do_not_train_in_one_folder(tmp_path):
  with (
    files.locked(tmp_path / loop.LOCK, "unused"),
    pytest.raises(job.UserError, match="another job trains in --workdir="),
  ):
    train("flow", tmp_path)
  assert train("flow", tmp_path)["step"] == TOTAL
