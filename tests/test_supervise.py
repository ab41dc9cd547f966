"""The small loop for one machine, around real jobs that really die."""

import os
import pathlib
import signal
import subprocess
import time

import chex
import pytest

from goku_jax import checkpoint
from tests import runs

SCRIPT = runs.ROOT / "launch" / "supervise.sh"
TRAIN = ("train", "--config=configs/digits.py:debug")


def start(*arguments, **environment):
  return subprocess.Popen(
    ["bash", SCRIPT, *map(str, arguments)],
    env=os.environ | {"XLA_FLAGS": runs.FLAGS} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def test_a_mistake_is_not_tried_again(tmp_path):
  job = ("--", *TRAIN, f"--workdir={tmp_path}", "--config.seeed=1")
  status, _, err = finish(start(*job))
  assert status == 2
  assert err.count("unknown config key 'seeed'") == 1


@pytest.mark.slow
def test_a_job_that_comes_no_further_is_given_up(tmp_path):
  job = ("--", *TRAIN, f"--workdir={tmp_path}")
  broken = {"JAX_PLATFORMS": "none_that_is_there"}  # a crash at the start
  status, _, err = finish(start("--tries=2", "--seconds=1", *job, **broken))
  assert status == 1
  assert err.count("Traceback") >= 2
  assert "ended with 1; started again in 1 s" in err
  assert err.splitlines()[-1] == (
    "supervise.sh: 2 starts without a newer checkpoint, the last ended with 1:"
    " giving up"
  )


@pytest.mark.parametrize("option", ["--tries=0", "--seconds=soon"])
def test_a_value_that_cannot_be_is_one_line(option, tmp_path):
  status, _, err = finish(start(option, "--", *TRAIN, f"--workdir={tmp_path}"))
  assert (status, err.count("\n")) == (2, 1)


def test_a_job_without_a_folder_is_one_line():
  status, _, err = finish(start("--", *TRAIN))
  assert (status, err.count("\n")) == (2, 1)
  assert "needs --workdir" in err


def training(workdir):
  """The process that trains there, but for the one that waits for it."""
  found = subprocess.run(
    ["pgrep", "-f", f"goku_jax.train .*--workdir={workdir}"],
    capture_output=True,
    text=True,
    check=False,
  )
  pids = [int(pid) for pid in found.stdout.split()]
  name = lambda pid: pathlib.Path(f"/proc/{pid}/comm").read_text()
  return [pid for pid in pids if name(pid).startswith("python")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_is_killed_comes_to_its_end(tmp_path):
  job = (*TRAIN, "--config.total_steps=40", "--config.save_every_steps=5")
  job += ("--config.show_every_steps=100",)
  broken, whole = tmp_path / "broken", tmp_path / "whole"
  process = start("--seconds=1", "--", *job, f"--workdir={broken}")
  killed = 0
  for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
    seen = checkpoint.whole_steps(broken / "checkpoints")
    while checkpoint.whole_steps(broken / "checkpoints") == seen:
      time.sleep(0.05)
    for pid in training(broken):
      os.kill(pid, number)
      killed += 1
    while training(broken):
      time.sleep(0.05)
  status, out, err = finish(process)
  assert (status, killed) == (0, 3), err
  assert err.count("ended with 137; started again") == 2
  assert out.count("resumed from step") == 3
  assert finish(start("--", *job, f"--workdir={whole}"))[0] == 0
  chex.assert_trees_all_equal(runs.read_arrays(broken), runs.read_arrays(whole))


@pytest.mark.slow
def test_who_stops_the_script_stops_the_job(tmp_path):
  job = (*TRAIN, f"--workdir={tmp_path}", "--config.save_every_steps=5")
  process = start("--", *job)
  while not checkpoint.whole_steps(tmp_path / "checkpoints"):
    time.sleep(0.05)
  process.terminate()
  status, out, err = finish(process)
  assert status == 75
  assert "preempted: saved at step" in err
  assert out.count("of 20") == 0  # it was not started again
