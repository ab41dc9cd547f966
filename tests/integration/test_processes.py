"""Two real processes train as one does, and one goes on where they stopped."""

import contextlib
import json
import shutil
import signal
import time

import chex
import numpy as np
import pytest

from goku_jax import checkpoint, lines
from goku_jax.data import video_io
from goku_jax.eval import results
from goku_jax.train import __main__ as train_main
from tests import runs

SHORT = dict(total_steps=4, save_every_steps=2, show_every_steps=100)
FLAGS = "--xla_backend_optimization_level=0"
FLAGS += " --xla_force_host_platform_device_count=4"


def training(workdir, port, overrides):
  """A training run in two processes of four devices each."""
  keys = {key.replace("__", "."): value for key, value in overrides.items()}
  return two_processes(
    port,
    "train",
    "--config=configs/digits.py:debug",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in keys.items()),
  )


@contextlib.contextmanager
def two_processes(port, *command, run=runs.start_job):
  """A job, or what `run` starts, in two processes of four devices each."""
  with contextlib.ExitStack() as stack:
    processes = []
    for index in range(2):
      process = run(
        *command,
        XLA_FLAGS=FLAGS,
        GOKU_HOSTS="localhost,localhost",
        GOKU_HOST_INDEX=str(index),
        GOKU_PORT=str(port),
      )
      stack.callback(process.kill)
      processes.append(process)
    yield processes


def finish(processes, status=0):
  """Waits for them; what each said on stderr."""
  said = [process.communicate(timeout=200) for process in processes]
  errors = [err.decode() for _, err in said]
  assert [process.returncode for process in processes] == [status] * 2, errors
  return errors


def read_losses(workdir):
  rows = lines.read(workdir / "metrics.jsonl")
  assert [row["step"] for row in rows] == list(range(4))
  return [row["loss"] for row in rows]


def assert_same_run(one, two):
  np.testing.assert_allclose(read_losses(one), read_losses(two), rtol=1e-5)
  one_arrays, two_arrays = runs.read_arrays(one), runs.read_arrays(two)
  assert one_arrays.keys() == {
    "params",
    "ema",
    "opt_state",
    "window",
    "step",
  }
  for name, arrays in one_arrays.items():
    # Adam divides a gradient that is nearly rounding by its own size.
    rtol = 1e-5 if name == "opt_state" else 1e-4
    if name == "window":  # NaN where no step has been yet
      chex.assert_trees_all_close(arrays, two_arrays[name], rtol=rtol)
    else:
      runs.assert_near(arrays, two_arrays[name], rtol)


MESHES = {
  "each reads its packs": dict(fsdp=4, sequence=2),
  "tokens of a pack on both": dict(fsdp=1, sequence=8),
}


def train_in_two(name, port, workdir):
  overrides = {f"mesh__{axis}": size for axis, size in MESHES[name].items()}
  with training(workdir, port, SHORT | overrides) as processes:
    finish(processes)
  return runs.read_config(**SHORT, **overrides)


def test_two_processes_train_as_one(port, flow_run, tmp_path):
  train_in_two("each reads its packs", port, tmp_path)
  for name in ("first_batch.png", "curves.png", "shown/00000004.png"):
    assert (tmp_path / name).stat().st_size
  assert_same_run(tmp_path, flow_run)  # one process and another mesh


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_one_process_goes_on_from_two(name, port, flow_run, tmp_path):
  two, resumed = tmp_path / "two", tmp_path / "resumed"
  config = train_in_two(name, port, two)
  assert_same_run(two, flow_run)
  shutil.copytree(two, resumed)
  shutil.rmtree(resumed / "checkpoints/4")
  train_main.main(config, str(resumed))
  assert_same_run(resumed, two)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_asked_to_stop_stops_both_at_one_step(
  number, port, tmp_path
):
  overrides = SHORT | dict(total_steps=5000, save_every_steps=5000)
  with training(tmp_path, port, overrides) as processes:
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
      assert all(process.poll() is None for process in processes)
      time.sleep(0.01)
    processes[1].send_signal(number)
    errors = finish(processes, status=75)
  (step,) = checkpoint.whole_steps(tmp_path / "checkpoints")
  assert all(f"preempted: saved at step {step};" in error for error in errors)


FAULT = """
import sys, threading
import jax
from goku_jax.train import __main__ as train_main, loop
from tests import runs

make_task, (workdir, who, what) = loop.TASKS["flow"], sys.argv[1:]

def read_a_disk_that_is_gone():
  if what == "hang":
    threading.Event().wait()
  raise OSError("the disk is gone")

def make_faulty_task(*args):
  task = make_task(*args)
  def batches(first, *more):
    for step, batch in enumerate(task.batches(first, *more), first):
      if step == 8 and jax.process_index() == int(who):
        read_a_disk_that_is_gone()
      yield batch
  return task._replace(batches=batches)

loop.TASKS["flow"] = make_faulty_task
config = runs.read_config(
  total_steps=1000, save_every_steps=1000, show_every_steps=1000,
  watchdog__least_seconds=5.0,
)
train_main.main(config, workdir)
"""


def fail_in_one(who, what, status, port, workdir):
  """What both said, where one was at fault."""
  command = (FAULT, str(workdir), str(who), what)
  start = time.monotonic()
  with two_processes(port, *command, run=runs.start_program) as processes:
    errors = finish(processes, status)
  assert time.monotonic() - start < 150  # JAX alone waits for five minutes
  return errors


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_hang_of_one_process_ends_both_with_their_stacks(who, port, tmp_path):
  errors = fail_in_one(who, "hang", 70, port, tmp_path)
  assert "in read_a_disk_that_is_gone" in errors[who]
  assert any(f"watchdog: process {who} is in 'data' for" in e for e in errors)
  for error in errors:
    assert "the stacks here:" in error
    assert "in _run" in error  # of the watchdog, a thread among all
  rows = lines.read(tmp_path / "metrics.jsonl")
  # The first one writes a step once it has begun the next one.
  assert rows[-1]["step"] == (6 if who == 0 else 7)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_an_error_of_one_process_ends_both_at_once(who, port, tmp_path):
  errors = fail_in_one(who, "error", 1, port, tmp_path)
  assert "OSError: the disk is gone" in errors[who]
  told = f"watchdog: process {who} failed: OSError: the disk is gone"
  assert told in errors[1 - who]


@pytest.mark.slow
def test_two_processes_judge_as_one_and_each_checkpoint_once(port, tmp_path):
  run, out = tmp_path / "run", tmp_path / "out"
  train_main.main(runs.read_config(**SHORT), str(run))
  command = (
    "eval",
    f"--workdir={run}",
    "--suite=losses",
    "--config=configs/digits.py:debug",
    "--config.evals.losses.num_samples=8",
    "--weights=ema,params",
    "--watch",
  )
  with two_processes(port, *command, f"--out={out}") as processes:
    finish(processes)
  found = results.Results(out).records()
  names = [(r["step"], r["weights"]) for r in found]
  assert names == [(s, w) for s in (2, 4) for w in ("ema", "params")]
  runs.run_job(*command, f"--out={tmp_path / 'one'}")
  for two, one in zip(
    found, results.Results(tmp_path / "one").records(), strict=True
  ):
    assert (two["devices"], one["devices"]) == (8, 1)
    for name, value in one["figures"].items():
      assert two["figures"][name] == pytest.approx(value, rel=1e-5)
  with two_processes(port, *command, f"--out={out}") as processes:
    finish(processes)  # a restart
  assert results.Results(out).records() == found
  with (
    results.open_results(out),
    two_processes(port, *command, f"--out={out}") as processes,
  ):
    errors = finish(processes, status=2)
  assert "another evaluation writes to" in errors[0]
  assert "process 0 cannot write to" in errors[1]


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(port, tmp_path):
  """Each decodes its share of the samples, and the first writes them all."""
  run, prompts = tmp_path / "run", tmp_path / "evaluation_metadata.jsonl"
  train_main.main(runs.read_config(**SHORT), str(run))
  row = {"tag": "counting", "include": [], "prompt": "the digit two"}
  prompts.write_text(json.dumps(row) + "\n")
  command = (
    "eval",
    f"--workdir={run}",
    "--suite=geneval",
    "--config=configs/benchmarks.py",
    f"--config.evals.geneval.prompts={prompts}",
    "--config.evals.geneval.num_steps=2",
  )
  with two_processes(port, *command, f"--out={tmp_path / 'two'}") as processes:
    finish(processes)
  runs.run_job(*command, f"--out={tmp_path / 'one'}")
  paths = sorted((tmp_path / "one" / "geneval").rglob("samples/*.png"))
  assert len(paths) == 4
  for path in paths:
    other = tmp_path / "two" / path.relative_to(tmp_path / "one")
    one, two = (video_io.read_video(p)[0].astype(int) for p in (path, other))
    assert np.abs(one - two).max() <= 1  # by rounding
