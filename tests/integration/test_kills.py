"""A run that is killed at random ends as one that never was."""

import collections
import hashlib
import json
import random
import time

import chex
import pytest

from goku_jax import checkpoint, manifest
from tests import runs

KILLS = 200
# Trains the digits; notes whose turn it is in each step.
PROGRAM = """
import json, os, sys
from goku_jax.train import __main__ as job, loop
from tests import runs

workdir, total, every = sys.argv[1], *map(int, sys.argv[2:])
config = runs.read_config(
  "flow", total_steps=total, save_every_steps=every, show_every_steps=10**6,
  checkpoint__keep=3, optim__schedule="constant",
)
make_task, notes = loop.TASKS["flow"], open(f"{workdir}/ids", "a")

def make_noting_task(*args):
  task = make_task(*args)
  def batches(first, *more):
    for step, batch in enumerate(task.batches(first, *more), first):
      ids = [batch[k].tolist() for k in ("sample_index_BG", "visit_BG")]
      print(json.dumps([step, ids]), file=notes, flush=True)
      yield batch
  return task._replace(batches=batches)

loop.TASKS["flow"] = make_noting_task
job.main(config, workdir)
"""


def start(workdir, total, every=1):
  workdir.mkdir(exist_ok=True)
  return runs.start_program(
    PROGRAM,
    workdir,
    total,
    every,
    JAX_COMPILATION_CACHE_DIR=str(workdir.parent / "cache"),  # compiled once
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )


def newest_of(folder):
  """Number of the newest step; -1 if there is none."""
  return max(checkpoint.whole_steps(folder), default=-1)


def stand(folder):
  """The same, which must be whole to the byte."""
  step = newest_of(folder)
  if step >= 0:
    path = folder / str(step)
    assert not manifest.problems(path, manifest.read(path)["files"])
  return step


def read_ids(workdir):
  """What each step had in its batch, which must be the same each time."""
  found = collections.defaultdict(set)
  for line in (workdir / "ids").read_text().splitlines():
    try:
      step, ids = json.loads(line)
    except ValueError:  # a kill cut it short
      continue
    found[step].add(hashlib.sha256(json.dumps(ids).encode()).hexdigest())
  assert all(len(ids) == 1 for ids in found.values())
  return dict(found)


def read_losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    (x["step"], x["loss"], x["grad_norm"]) for x in map(json.loads, lines)
  ]


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_no_kill_costs_a_checkpoint_or_changes_the_run(tmp_path):
  rng = random.Random(0)
  broken, folder = tmp_path / "broken", tmp_path / "broken" / "checkpoints"
  with start(tmp_path / "compiled", 1) as process:
    process.communicate()
  newest, moved, took = -1, 0, 10.0
  for kill in range(KILLS):
    since = time.monotonic()
    with start(broken, 10**6) as process:
      if kill % 4 == 3:  # from before it restores to its first step
        time.sleep(took * rng.uniform(0.5, 1))
      else:  # in its steps, which are saves, commits and removals as well
        wait_for(process, newest_of, folder, newest + 1)
        took = time.monotonic() - since
        time.sleep(rng.uniform(0, 2))
      assert process.poll() is None, process.stderr.read()
      process.kill()
    assert stand(folder) >= newest, "a committed step is lost"
    moved += stand(folder) > newest
    newest = stand(folder)
  total = newest + 5
  finish(broken, tmp_path / "whole", total)
  print(f"{KILLS} kills, {moved} after new steps, {total} steps in all")
  assert moved >= KILLS // 2


def wait_for(process, reached, where, step):
  while reached(where) < step:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.01)


def finish(broken, whole, total, **options):
  """Lets a run that was broken end, and holds it against one that was not."""
  for workdir in (broken, whole):
    with start(workdir, total, **options) as process:
      _, said = process.communicate(timeout=1800)
    assert process.returncode == 0, said.decode()
  chex.assert_trees_all_equal(runs.read_arrays(broken), runs.read_arrays(whole))
  assert read_losses(broken) == read_losses(whole)
  assert read_ids(broken) == read_ids(whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_failure_every_thirty_steps_leaves_the_losses_as_they_are(tmp_path):
  broken = tmp_path / "broken"
  for failure in range(1, 5):
    with start(broken, 10**6, every=12) as process:
      wait_for(process, reached, broken, 30 * failure)
      process.kill()
  finish(broken, tmp_path / "whole", reached(broken) + 30, every=12)


def reached(workdir) -> int:
  """How many steps the metrics tell of."""
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0
