"""The training loop, one for the autoencoder and the flow model.

Do not reorder: pictures and checkpoints show the state before the update, and
the data moves only after saving. So step k of the run has batch k of the data,
or k and what was passed over after bad steps, whoever computes it and however
often it was stopped.
"""

import contextlib
import functools
import itertools
import json
import logging
import math
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from goku_jax import checkpoint, coordination, costs, files, job
from goku_jax.data import video_io
from goku_jax.eval import report as reports
from goku_jax.eval import results
from goku_jax.flow import noise
from goku_jax.models import lora
from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.sample.restore import keep_base, restore_base
from goku_jax.train import (
  flow_task,
  guards,
  init_from,
  memory,
  profiling,
  vae_task,
)
from goku_jax.train.emergency import Emergency
from goku_jax.train.goodput import Goodput
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.pace import Pace
from goku_jax.train.replay import Replay
from goku_jax.train.step import TrainState, cast, init_state, jit_step
from goku_jax.train.watchdog import Watchdog
from goku_jax.typing import UserError

TASKS = {"flow": flow_task.make_task, "vae": vae_task.make_task}
TREES = ("params", "ema", "opt_state", "window", "step", "critic")
LOCK = ".training"
GUARDS = dict(
  sigma=0, clip_sigma=0, window=2, bad_steps=1, rollbacks=0, replay_every=0
)
GUARDS |= dict(slow_host=0)
POSITIVE = ("total_steps", "log_every_steps", "save_every_steps")
POSITIVE += ("show_every_steps",)


class Run(NamedTuple):
  """What stays as it is from the first step to the last."""

  config: Any
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  task: Any
  peak: float  # FLOP/s of all devices
  local: Emergency
  goodput: Goodput
  watchdog: Watchdog


class Compiled(NamedTuple):
  """What the devices do."""

  advance: Callable  # state, batch -> state, metrics
  is_due: Callable  # step -> whether it is checked, see replay.py
  check: Callable  # step, state, batch -> None


def train(config, workdir, began: float | None = None) -> dict:
  """Trains until `config.total_steps`, going on from the newest checkpoint.

  Args:
    config: of the run.
    workdir: its folder.
    began: `time.perf_counter()` when the process did.
  """
  _check(config)
  goodput, workdir = Goodput(began), pathlib.Path(workdir)
  mesh = meshes.make_mesh(**config.mesh)
  with (
    Watchdog(**config.watchdog) as watchdog,
    contextlib.closing(TASKS[config.stage](config, mesh)) as task,
  ):
    peak = costs.peak_flops()  # may time one device, so outside of the mesh
    with (
      meshes.use(mesh),
      Emergency(
        mesh, workdir, **config.emergency, watch=watchdog.watch
      ) as local,
    ):
      return _train(
        Run(config, workdir, mesh, task, peak, local, goodput, watchdog)
      )


def _train(run):
  config, workdir, mesh, task, *_, goodput, watchdog = run
  rng = jax.random.key(config.seed)
  tx = make_optimizer(total_steps=config.total_steps, **config.optim)
  state, placed, batch = _init_or_restore(run, tx, rng)
  settings = dict(
    loss_fn=task.loss_fn,
    critic=task.critic,
    dtype=task.dtype,
    tx=tx,
    ema_decay=config.ema_decay,
    micro_batches=config.micro_batches,
    sigma=config.guards.sigma,
    clip_sigma=config.guards.clip_sigma,
    frozen=config.optim.frozen and re.compile(config.optim.frozen),
    more_ema=tuple(config.more_ema),
  )
  step_fn = jit_step(placed, **settings)
  replay = Replay(config.guards.replay_every, placed, **settings)
  key = batches.replicate(mesh, rng)
  compiled = Compiled(
    advance=lambda state, batch: step_fn(state, batch, key),
    is_due=replay.is_due,
    check=lambda step, *state_and_batch: replay.check(
      step, *state_and_batch, key
    ),
  )
  first, total = int(state.step), config.total_steps
  # Reads nothing yet, but may refuse.
  data = task.batches(batch, total - first) if first < total else None
  how = {k: config.checkpoint[k] for k in ("keep", "keep_every", "save_gb")}
  with (
    _preemption() as preempted,
    checkpoint.Checkpointer(
      checkpoint.folder_of(workdir, config),
      **how,
      best=lambda steps: _best(config, workdir, steps),
      config=config.to_dict(),
      watch=watchdog.watch,
    ) as ckpt,
    _locked(workdir),
  ):
    ckpt.went_on_from = first
    if _writes():  # all else that may refuse has
      task.settle(workdir)
      if state.base is not None:
        keep_base(config, workdir)
      job.save_config(workdir, config)
      goodput.keep(workdir, first)
    try:
      if first == total:
        _evaluate(run, state, _due(config, first))
        return {"step": first, **_last_metrics(workdir)}
      if _writes():
        task.preflight(batch)
      again = lambda before: _init_or_restore(run, tx, rng, before)[0]
      state, metrics = _to_the_end(
        run, state, data, batch, compiled, again, ckpt, preempted
      )
      with goodput.book("save"):
        ckpt.wait()
        run.local.remove()
    finally:
      goodput.end()
      if _writes():
        print(goodput.tell(), flush=True)
  # Private, but chex.assert_max_traces counts traces alone: a state that comes
  # back placed otherwise compiles again without one.
  if step_fn._cache_size() != 1:
    raise RuntimeError(f"the step compiled {step_fn._cache_size()} times")
  return {"step": int(state.step), **metrics}


def _to_the_end(run, state, data, batch, compiled, again, ckpt, preempted):
  """Runs all steps; where the numbers stay bad, goes back and past them."""
  config, task, goodput = run.config, run.task, run.goodput
  left = config.guards.rollbacks
  while True:
    try:
      return _loop(run, state, data, batch, compiled, ckpt, preempted)
    except guards.DivergedError as error:
      if not left:
        raise FloatingPointError(
          f"{error}; going back did not help, or guards.rollbacks is 0"
        ) from error
      batch, before = error.batch + 1, error.first
      logging.warning(
        "%s: going back to the last good checkpoint, and on from batch %d",
        error,
        batch,
      )
    # Not in the handler, whose error holds the state.
    ckpt.wait()
    run.local.wait()
    state = None
    state = again(before)
    first = ckpt.went_on_from = int(state.step)
    data = task.batches(batch, config.total_steps - first)
    goodput.go_back(first)
    run.watchdog.forget()
    left -= 1


def _check(config):
  """Refuses numbers of the loop's own that it cannot follow."""
  noise.check_seed(config.seed)
  for name in POSITIVE:
    if config[name] < 1:
      raise UserError(f"{name}={config[name]}: set 1 or more")
  for name, least in GUARDS.items():
    if config.guards[name] < least:
      value = config.guards[name]
      raise UserError(f"guards.{name}={value}: set {least} or more")
  if 0 < config.guards.slow_host <= 1:
    raise UserError("guards.slow_host: set more than 1, or 0 for none")
  for name, decays in (
    ("ema_decay", [config.ema_decay]),
    ("more_ema", config.more_ema),
  ):
    if not all(0 <= decay < 1 for decay in decays):
      raise UserError(f"{name}={config[name]}: set 0 or more, below 1")


def _init_or_restore(run, tx, rng, before=None):
  """The state of the newest whole checkpoint, or the initial one.

  And how its leaves are placed, and the number of its next batch.
  """
  config, workdir, mesh, task, _, local, goodput, watchdog = run
  init = lambda rng: init_state(
    task.init_params(rng),
    tx,
    task.critic and task.critic.init_params(rng),
    window=config.guards.window,
    more_ema=config.more_ema,
  )
  abstract, placed = rules.lay_out(mesh, init, rng)
  names = ("verify", "fall_back", "restore_gb")
  how = {k: config.checkpoint[k] for k in names} | {"before": before}
  with goodput.book("restore"), watchdog.watch("restore"):
    trees = _trees(abstract)
    # A copy on the hosts is newer than what is gone back to.
    found = before is None and local.restore(trees)
    found = found or checkpoint.restore(
      checkpoint.folder_of(workdir, config), trees, **how
    )
    base = abstract.base and restore_base(config, abstract.base, workdir)
  if base is not None:
    held = functools.partial(cast, dtype=task.dtype)
    base = jax.jit(held, out_shardings=placed.base)(base)
  if not found:
    with goodput.book("compile"):
      make = lambda rng: init(rng).replace(base=None)
      state = jax.jit(make, out_shardings=placed.replace(base=None))(rng)
    state = init_from.begin(config, state.replace(base=base), abstract)
    return state, placed, 0
  step, trees, position = found
  print(f"resumed from step {step} of {config.total_steps}", flush=True)
  more = {name: trees.pop(name) for name in abstract.more_ema or ()}
  state = TrainState(**trees, more_ema=more or None, base=base)
  return state, placed, position["batch"]


def _writes() -> bool:
  """Whether this process writes what all of them compute."""
  return jax.process_index() == 0


def _locked(workdir):
  """The run's folder is this job's, if it is the one that writes."""
  if not _writes():
    return contextlib.nullcontext()
  taken = f"another job trains in --workdir={workdir}: wait, or choose another"
  return files.locked(workdir / LOCK, taken)


@contextlib.contextmanager
def _preemption():
  """A function that tells whether to stop at a step, the same everywhere."""
  several = jax.process_count() > 1
  with job.preemption(several) as preempted:
    if several:
      # JAX expects a count without gaps, which steps of a resumed run are not.
      calls = itertools.count(1)
      reached = multihost_utils.reached_preemption_sync_point
      yield lambda step: reached(next(calls))
    else:
      yield lambda step: preempted()


def _trees(state: TrainState) -> dict:
  """The state as named trees: evaluation restores one of them alone."""
  trees = {name: getattr(state, name) for name in TREES}
  trees |= state.more_ema or {}
  return {name: tree for name, tree in trees.items() if tree is not None}


def _loop(run, state, data, batch, compiled, ckpt, preempted):
  """Runs the remaining steps; returns the last state and metrics.

  Raises:
    guards.DivergedError: the numbers are bad and do not get better.
  """
  config, workdir, mesh, task, *_, goodput, watchdog = run
  first, total = int(state.step), config.total_steps
  passed = batch - first  # batches that the run has left out
  readers = batches.count_readers(mesh)
  writing = job.Writers(workdir, first) if _writes() else None
  with (
    writing or contextlib.nullcontext() as writers,
    job.Progress(total, first, config.stage) as progress,
    profiling.Profile(workdir, **config.get("profile", {})) as profile,
  ):
    report = Reporter(run, writers, progress, first, passed)
    pace = Pace(workdir, config.guards.slow_host)
    for step in range(first, total + 1):
      turn = _turn(run, preempted, first, step)
      ckpt.check()
      if any(turn):
        _pause(run, ckpt, report, writers, state, step, step + passed, turn)
      if turn.stop:
        raise job.Preempted(f"saved at step {step}; run it again to go on")
      if turn.is_last:
        return state, report.latest
      began = time.perf_counter()
      with goodput.book("data", report.is_busy), watchdog.watch("data"):
        read = next(data)
        placed = batches.place(mesh, read)
      if step == 0 and writers:
        _draw_batch(workdir, task.picture(read))
      pace.add(step, time.perf_counter() - began)
      profile.at(step, state)
      with memory.explained(config, mesh, state, placed):
        if compiled.is_due(step):
          with goodput.book("idle"), watchdog.watch("replay"):
            compiled.check(step, state, placed)
          report.restart_clock()
        kind = "step" if step > first else "compile"
        with (
          goodput.book(kind),
          watchdog.watch(kind),
          jax.transfer_guard("disallow"),
        ):
          state, metrics = compiled.advance(state, placed)
        with goodput.book("idle", report.is_busy):
          # What other processes read is taken to be as much.
          work = (readers * amount for amount in task.work(read))
          report.add(step, metrics, guards.samples_of(read), *work)
      goodput.reached(step)


class Turn(NamedTuple):
  """What is due before a step."""

  is_last: bool  # and no step comes after
  stop: bool  # asked for from outside
  save: bool
  copy: bool  # to the hosts' own disks
  show: bool
  suites: list[str]  # that judge


def _turn(run, preempted, first, step) -> Turn:
  """Decides it, the same on all processes."""
  config = run.config
  is_last, is_new = step == config.total_steps, step > first
  stop = is_new and not is_last and preempted(step)
  save, show = (
    is_last or (is_new and step % config[every] == 0)
    for every in ("save_every_steps", "show_every_steps")
  )
  copy = is_new and run.local.is_due(step)
  if stop:  # at once: what else is due comes when the run goes on
    return Turn(is_last, stop, True, False, False, [])
  return Turn(is_last, stop, save, copy and not save, show, _due(config, step))


def _pause(run, ckpt, report, writers, state, step, batch, turn):
  """Does what is due before a step."""
  report.flush()
  if turn.is_last and writers:  # a run that is saved to its end is done
    _draw_curves(run.workdir)
  # Amid bad steps the weights may be what is bad.
  wanted = turn.stop or turn.is_last or not report.bad.row
  if wanted and (turn.save or turn.copy):
    _save(run, ckpt if turn.save else run.local, state, step, batch)
  if turn.stop:
    with run.goodput.book("save"):
      ckpt.wait()
    return
  # After the save, which what goes wrong here may not cost.
  with run.goodput.book("evaluation"):
    if turn.show:
      _show(run.workdir, run.task, state, step, writers)
    _evaluate(run, state, turn.suites)
    if turn.show or turn.suites:  # of which the first process does more
      coordination.meet(f"goku_jax/shown/{batch}")
  if writers:
    writers.write_board(step, "goodput", run.goodput.shares())
  report.restart_clock()


def _save(run, saver, state, step, batch):
  """Saves a state, unless it would be one that no step comes back from."""
  trees = _trees(state)
  numbers = {name: tree for name, tree in trees.items() if name != "window"}
  with run.goodput.book("save"), run.watchdog.watch("save"):
    if not guards.all_finite(numbers):
      told = f"the state before step {step} is not finite"
      raise guards.DivergedError(told, step, batch - 1)
    saver.save(step, _trees(state), {"step": step, "batch": batch})
  run.goodput.reached(step, at_once=True)


def _best(config, workdir, steps):
  """The step that `checkpoint.keep_best` means, if there is one yet."""
  figure = config.checkpoint.keep_best
  if not figure:
    return None
  records = results.Results(workdir / "evals" / reports.IN_TRAINING)
  try:
    return records.best(figure, "ema", steps)
  except UserError:
    return None


def _evaluate(run, state, names):
  if names:
    step = int(state.step)
    run.task.evaluate(names, step, *_weights(state), run.workdir)


def _weights(state) -> list:
  """Parameters and their average, as the model takes them."""
  return [lora.join(tree, state.base) for tree in (state.params, state.ema)]


def _draw_batch(workdir, videos):
  captions = [["first batch"] * len(videos)]
  video_io.contact_sheet([videos], captions, workdir / "first_batch.png")


def _due(config, step) -> list[str]:
  """Evaluators of the config whose turn is at a step: at the last one too.

  Asked of the first step of a run that goes on as well, which may have died in
  them.
  """
  is_last = step == config.total_steps
  return [
    name
    for name, settings in config.get("evals", {}).items()
    if (every := settings.get("every_steps", 0))
    and (is_last or (step and step % every == 0))
  ]


class Reporter:
  """Writes each step's metrics one step late.

  Fetching them waits for their step while the device works on the next one,
  so at most two are in flight.
  """

  def __init__(self, run, writers, progress, first, passed):
    config = run.config
    self.every, self.last = config.log_every_steps, config.total_steps - 1
    self.writers, self.progress = writers, progress
    self.run, self.first, self.passed = run, first, passed
    self.bad = guards.BadSteps(run.workdir, config.guards.bad_steps)
    self.latest, self.pending = {}, None
    self.restart_clock()

  def restart_clock(self):
    """Leaves what was done since the last step out of the next one's rate."""
    self.clock = time.perf_counter()

  def is_busy(self) -> bool:
    """Whether a step that was dispatched has not ended yet."""
    return self.pending is not None and not self.pending[1]["loss"].is_ready()

  def add(self, step, metrics, samples, flops, tokens):
    """Takes a dispatched step and writes the one before."""
    self.flush()
    self.pending = (step, metrics, samples, flops, tokens)

  def flush(self):
    """Waits for the step that is in flight and writes it."""
    if self.pending is None:
      return
    (step, metrics, samples, flops, tokens), self.pending = self.pending, None
    with self.run.goodput.book("step"), self.run.watchdog.watch("step"):
      metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self.bad.take(step, step + self.passed, metrics, samples)
    # What is left and not a number had no sample in the batch.
    metrics = {k: v for k, v in metrics.items() if not math.isnan(v)}
    now = time.perf_counter()
    seconds, self.clock = now - self.clock, now
    if step > self.first:  # which compiled
      metrics["tokens_per_second"] = tokens / seconds
      metrics["mfu"] = costs.mfu(flops, seconds, self.run.peak)
    shown = ("loss", "tokens_per_second", "mfu")
    self.progress.update(step + 1, **{k: metrics.get(k) for k in shown})
    self.latest = metrics
    if self.writers and (step % self.every == 0 or step == self.last):
      self.writers.write_scalars(step, metrics)


def _last_metrics(workdir) -> dict:
  """What the run that is already done ended with."""
  last = _read_metrics(workdir)[-1]
  return {name: value for name, value in last.items() if name != "step"}


def _read_metrics(workdir) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def _draw_curves(workdir):
  """A picture of the losses over the whole run, resumes included."""
  rows = _read_metrics(workdir)
  series = {}
  for row in rows:  # one without such samples has no such loss
    for name in row:
      if name.startswith("loss"):
        steps, losses = series.setdefault(name, ([], []))
        steps.append(row["step"])
        losses.append(row[name])
  video_io.curves(workdir / "curves.png", series)


def _show(workdir, task, state, step, writers):
  """What raw and averaged parameters draw, side by side: picture and film."""
  shown = task.show(*_weights(state))
  if not writers:
    return
  rows = [list(row) for row in zip(*shown.values(), strict=True)]
  captions = [[f"{name}: {c}" for name in shown] for c in task.captions]
  path = workdir / "shown" / f"{step:08d}.png"
  video_io.contact_sheet(rows, captions, path)
  writers.write_image(step, "shown", video_io.read_video(path)[0][0])
  if max(len(video) for row in rows for video in row) > 1:
    video_io.contact_video(rows, captions, path.with_suffix(".mp4"))
