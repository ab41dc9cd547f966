"""What the loader of a config costs beside its step."""

import itertools
import time

import jax

from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.train import flow_task
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.step import init_state, jit_step

STEPS = 8  # of a round


def compare(config, rounds: int) -> dict:
  """Seconds of a step's data, of the step alone, and their ratio.

  The data are read with all the threads that training gives them, and nobody
  else on the machine; the step computes on batches that are there already.

  Args:
    config: of stage=flow, with its data.
    rounds: the fastest of each counts; they take turns.
  """
  mesh = meshes.make_mesh(**config.mesh)
  task = flow_task.make_task(config, mesh)
  try:
    with meshes.use(mesh):
      loading, stepping = _time(config, mesh, task, rounds)
  finally:
    task.close()
  return {
    "packs_per_second": config.data.num_packs / loading,
    "packs_per_second_of_the_step": config.data.num_packs / stepping,
    "loader_seconds": loading,
    "step_seconds": stepping,
    "loader_ratio": loading / stepping,
  }


def _time(config, mesh, task, rounds):
  rng = jax.random.key(config.seed)
  tx = make_optimizer(total_steps=config.total_steps, **config.optim)
  read = itertools.islice(task.batches(0), 2)
  held = [batches.place(mesh, batch) for batch in read]
  init = lambda rng: init_state(task.init_params(rng), tx)
  placed = rules.shardings(mesh, jax.eval_shape(init, rng))
  state = jax.jit(init, out_shardings=placed)(rng)
  step = jit_step(
    placed,
    loss_fn=task.loss_fn,
    dtype=task.dtype,
    tx=tx,
    ema_decay=config.ema_decay,
    micro_batches=config.micro_batches,
  )
  rng = jax.device_put(rng, placed.step)
  loading, stepping = [], []
  for i in range(rounds + 1):  # the first compiles
    read = task.batches(1 + i * STEPS)
    start = time.perf_counter()
    for _ in range(STEPS):
      next(read)
    loading.append((time.perf_counter() - start) / STEPS)
    del read
    start = time.perf_counter()
    for k in range(STEPS):
      state, metrics = step(state, held[k % 2], rng)
      jax.block_until_ready(metrics)
    stepping.append((time.perf_counter() - start) / STEPS)
  return min(loading[1:]), min(stepping[1:])
