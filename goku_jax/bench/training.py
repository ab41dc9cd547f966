"""The step of a flow config as `train` runs it, without what is around it."""

import contextlib
import time
from collections.abc import Iterable

import jax
import numpy as np

from goku_jax.bench import made_up
from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import multihost, rules
from goku_jax.train import flow_task
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.step import init_state, jit_step

WARM_UP = 2  # steps that do not count


class Training:
  """A task, its state, and the step that moves it."""

  def __init__(self, config, mesh, task):
    self.mesh, self.task, self._num_packs = mesh, task, config.data.num_packs
    rng = jax.random.key(config.seed)
    tx = make_optimizer(total_steps=config.total_steps, **config.optim)
    init = lambda rng: init_state(task.init_params(rng), tx)
    placed = rules.shardings(mesh, jax.eval_shape(init, rng))
    self.state = jax.jit(init, out_shardings=placed)(rng)
    self.rng = batches.replicate(mesh, rng)
    self.step = jit_step(
      placed,
      loss_fn=task.loss_fn,
      dtype=task.dtype,
      tx=tx,
      ema_decay=config.ema_decay,
      micro_batches=config.micro_batches,
    )

  def place(self, batch: dict) -> dict:
    """A host's batch on the devices."""
    return batches.place(self.mesh, batch)

  def work(self, batch: dict) -> tuple[float, float]:
    """Training FLOPs and tokens of a step over all hosts, by this one's batch.

    Hosts that share packs hold the same ones, so their batches do not add up.
    """
    flops, tokens = self.task.work(batch)
    share = len(batch["segment_ids_BL"]) / self._num_packs
    return flops / share, tokens / share

  def compile(self, placed: dict) -> tuple[float, float]:
    """Seconds of tracing and of compiling the step, for batches like this."""
    start = time.perf_counter()
    lowered = self.step.lower(self.state, placed, self.rng)
    traced = time.perf_counter()
    self.step = lowered.compile()
    return traced - start, time.perf_counter() - traced

  def time(self, placed: Iterable[dict]) -> list[float]:
    """Seconds from the end of each step to that of the next.

    The first WARM_UP steps do not count. One step runs while the next is sent,
    as in training: with more in flight pretend devices may wait for each other
    forever.
    """
    ends, before = [], None
    for batch in placed:
      self.state, metrics = self.step(self.state, batch, self.rng)
      if before is not None:
        jax.block_until_ready(before)
        ends.append(time.perf_counter())
      before = metrics
    jax.block_until_ready(before)
    ends.append(time.perf_counter())
    return np.diff(ends)[WARM_UP - 1 :].tolist()


def has_data(config) -> bool:
  """Whether a config reads samples; else its `plan` says what is made up."""
  return config.data.path is not None or "plan" not in config


@contextlib.contextmanager
def opened(config, steps: int):
  """A `Training` at its first step, with data for `steps` at least.

  Without `data.path`, packs are made up as `config.plan` says.

  Raises:
    UserError: as `train` would.
  """
  multihost.initialize()
  mesh = meshes.make_mesh(**config.mesh)
  # The step keeps to the config's own: it is a constant of what is compiled.
  longer = config.copy_and_resolve_references()
  longer.total_steps = max(config.total_steps, steps)
  make_task = flow_task.make_task if has_data(config) else made_up.make_task
  task = make_task(longer, mesh)
  try:
    with meshes.use(mesh):
      yield Training(config, mesh, task)
  finally:
    task.close()
