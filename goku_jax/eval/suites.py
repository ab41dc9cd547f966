"""The suites that judge flow models, and how they are run on checkpoints.

A suite is an entry of a config's section `evals`: its settings, and
`every_steps`, after how many steps of training it is run there (0: never).
"""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from goku_jax import checkpoint
from goku_jax.eval.results import Results
from goku_jax.sample import restore
from goku_jax.typing import UserError

POLL_SECONDS = 10.0


def _losses(run, out, started, settings):
  from goku_jax.eval import losses

  return losses.run(run, **settings)


def _digits(run, out, started, settings):
  from goku_jax.eval import digits_suite

  return digits_suite.run(run, out, started=started, **settings)


def _distances(run, out, started, settings, *, name):
  from goku_jax.eval import distances

  return distances.RUN[name](run, settings)


def _benchmark(run, out, started, settings, *, name):
  from goku_jax.eval import benchmark_suite

  return benchmark_suite.run(name, run, out, settings)


# (model, folder for files, epoch seconds of the start, settings) -> figures;
# all processes call it.
SUITES: dict[str, Callable] = {
  "losses": _losses,
  "digits": _digits,
  **{
    name: functools.partial(_distances, name=name)
    for name in ("fid", "fvd", "vgg16", "clip_score", "ucf101")
  },
  **{
    name: functools.partial(_benchmark, name=name)
    for name in ("vbench", "geneval", "dpg", "compbench")
  },
}


def run_suite(
  name: str,
  run: restore.Restored,
  out,
  settings: dict,
  started: float | None = None,
) -> dict:
  """Figures of a model by a suite.

  Raises:
    UserError: a setting, or a model that the suite does not judge.
  """
  settings = {k: v for k, v in settings.items() if k != "every_steps"}
  started = time.time() if started is None else started
  return SUITES[name](run, pathlib.Path(out), started, settings)


def judge(
  results: Results | None,
  wanted: dict[str, dict],
  workdir,
  *,
  step: int | None,
  weights: list[str],
  mesh,
  again: bool = True,
  text_encoder: str | None = None,
  out,
  started: float | None = None,
) -> dict:
  """Figures of one checkpoint by suites; appended to `results`.

  All processes call it; the first has `results`, the others None.

  Args:
    results: of the folder that receives records.
    wanted: settings by suite.
    workdir: of the run.
    step: of the checkpoint; None is the newest.
    weights: each of "ema", "params" that is judged.
    mesh: of all devices.
    again: whether what has a record already is judged too.
    text_encoder: see `restore.restore`.
    out: folder for files; where several kinds of weights are judged, each has
      a folder of its name in it.
    started: see `run_suite`.

  Raises:
    UserError: as `restore` and the suites.
  """
  found = {}
  if jax.process_count() > 1:  # what is saved meanwhile may not part them
    newest = max(_whole_steps(workdir), default=-1)
    asked = everyone(newest if step is None else step)
    step = asked if asked >= 0 else None
  for kind in weights:
    missing = [
      name
      for name, settings in wanted.items()
      if again or not everyone_has(results, name, step, kind, settings)
    ]
    if not missing:
      continue
    run = restore.restore(
      workdir, step=step, weights=kind, text_encoder=text_encoder, mesh=mesh
    )
    folder = pathlib.Path(out, kind) if len(weights) > 1 else out
    for name in missing:
      figures = run_suite(name, run, folder, wanted[name], started)
      if results:
        results.add(name, run.step, kind, wanted[name], figures)
      found.setdefault(name, {})[kind] = figures
  return found


def follow(
  workdir, last_step: int, is_done: Callable[[int], bool]
) -> Iterator[int]:
  """Whole checkpoints that are not done, oldest first, as training saves them.

  It ends when the one of `last_step` is done. Those that retention removed
  before their turn do not come; all processes get the same ones.
  """
  while True:
    steps = _whole_steps(workdir)
    open_steps = [step for step in steps if not is_done(step)]
    step = everyone(open_steps[0] if open_steps else -1)
    if step >= 0:
      yield step
    elif everyone(int(last_step in steps)):
      return
    else:
      time.sleep(POLL_SECONDS)


def is_there(workdir, step: int) -> bool:
  """Whether a checkpoint is still whole, for the first process and so all."""
  return bool(everyone(int(step in _whole_steps(workdir))))


def _whole_steps(workdir) -> list[int]:
  return checkpoint.whole_steps(checkpoint.folder_of(workdir))


def everyone_has(results: Results | None, *record) -> bool:
  """Whether the first process, which has the results, has a record."""
  return bool(everyone(int(results is not None and results.has(*record))))


def everyone(number: int) -> int:
  """The number of the first process, on all: a collective call."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def read_step(text: str, results: Results, best: str, weights: str):
  """The step of `--step=`: a number, "latest" (None) or "best".

  Args:
    text: of the flag.
    results: which knows the best.
    best: as of `Results.best`.
    weights: the kind whose best is meant.

  Raises:
    UserError: it is none of these, or there is no such record yet.
  """
  if text == "latest":
    return None
  if text == "best":
    return results.best(best, weights)
  if not text.isdecimal():
    raise UserError(f"--step={text}: give a number, latest or best")
  return int(text)
