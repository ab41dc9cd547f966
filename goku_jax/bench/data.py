"""What the loader of a config costs beside its step."""

import itertools
import time

import numpy as np

from goku_jax.bench import training

STEPS = 8  # of a round


def compare(config, rounds: int) -> dict:
  """Seconds of a step's data, of the step alone, and their ratio.

  The data are read with all the threads that training gives them, and nobody
  else on the machine; the step computes on batches that are there already.

  Args:
    config: of stage=flow, with its data.
    rounds: the fastest of each counts; they take turns.
  """
  loading, stepping = [], []
  with training.opened(config, (rounds + 1) * STEPS) as run:
    held = [run.place(x) for x in itertools.islice(run.task.batches(0), 2)]
    for i in range(rounds + 1):  # the first compiles
      read = run.task.batches(i * STEPS)
      start = time.perf_counter()
      for _ in range(STEPS):
        next(read)
      loading.append((time.perf_counter() - start) / STEPS)
      del read
      steps = STEPS + training.WARM_UP
      stepping.append(
        np.mean(run.time(itertools.islice(itertools.cycle(held), steps)))
      )
  loading, stepping = min(loading[1:]), float(min(stepping[1:]))
  return {
    "packs_per_second": config.data.num_packs / loading,
    "packs_per_second_of_the_step": config.data.num_packs / stepping,
    "loader_seconds": loading,
    "step_seconds": stepping,
    "loader_ratio": loading / stepping,
  }
