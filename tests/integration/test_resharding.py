"""A run goes on, on other devices and processes, as if it had not moved."""

import shutil

import numpy as np
import pytest

from goku_jax import lines
from tests import runs
from tests.integration.test_processes import finish, two_processes

# Trains the digits on all devices; each process notes whose turn it is.
PROGRAM = """
import json, sys
import jax
from goku_jax.train import __main__ as job, loop
from tests import runs

workdir, total = sys.argv[1], int(sys.argv[2])
config = runs.read_config(
  "flow", total_steps=total, save_every_steps=3, show_every_steps=100,
  optim__schedule="constant",
)
make_task = loop.TASKS["flow"]

def make_noting_task(*args):
  task = make_task(*args)
  notes = open(f"{workdir}/ids.{jax.process_index()}.jsonl", "a")
  def batches(first, *more):
    for step, batch in enumerate(task.batches(first, *more), first):
      for row in batch["sample_index_BG"].tolist():
        print(json.dumps({"step": step, "row": row}), file=notes, flush=True)
      yield batch
  return task._replace(batches=batches)

loop.TASKS["flow"] = make_noting_task
job.main(config, workdir)
"""


def devices(count):
  return {
    "XLA_FLAGS": f"{runs.FLAGS} --xla_force_host_platform_device_count={count}"
  }


def train(workdir, total, count):
  workdir.mkdir(exist_ok=True)
  with runs.start_program(PROGRAM, workdir, total, **devices(count)) as process:
    _, error = process.communicate(timeout=600)
  assert process.returncode == 0, error.decode()


def read(workdir):
  """Losses, and the packs of each step, whoever had which."""
  losses = [row["loss"] for row in lines.read(workdir / "metrics.jsonl")]
  packs = {}
  for path in sorted(workdir.glob("ids.*.jsonl")):
    for row in lines.read(path):
      packs.setdefault(row["step"], []).append(row["row"])
  return losses, {step: sorted(rows) for step, rows in packs.items()}


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
  """A run of three steps on eight devices, and one of six."""
  short = tmp_path_factory.mktemp("short") / "run"
  whole = tmp_path_factory.mktemp("whole") / "run"
  train(short, 3, 8)
  train(whole, 6, 8)
  return short, read(whole)


def check(workdir, wanted):
  losses, packs = read(workdir)
  np.testing.assert_allclose(losses, wanted[0], rtol=1e-5)
  assert packs == wanted[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_devices_go_on_with_the_same_losses(eight, count, tmp_path):
  short, wanted = eight
  moved = shutil.copytree(short, tmp_path / "run")
  train(moved, 6, count)
  check(moved, wanted)


@pytest.mark.slow
def test_two_processes_go_on_with_the_same_losses(eight, port, tmp_path):
  short, wanted = eight
  moved = shutil.copytree(short, tmp_path / "run")
  command = (PROGRAM, str(moved), "6")
  with two_processes(port, *command, run=runs.start_program) as processes:
    finish(processes)
  check(moved, wanted)
