"""Numbers that go bad: skipped, written down, and if they stay, left behind.

A step whose loss or gradient is not finite, or, by option, far above the last
ones, changes nothing but the place in the data. After several in a row a run
goes back to its newest checkpoint and past their batches.

  <workdir>/bad_batches/<process>.jsonl  the samples of each such step
"""

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import files, lines

WATCHED = ("loss", "grad_norm")


def init_window(size: int) -> dict:
  """The last values of what is watched: not numbers, as there are none yet."""
  return {name: jnp.full(size, jnp.nan, jnp.float32) for name in WATCHED}


def judge(window: dict, metrics: dict, sigma: float):
  """Whether a step is good, and the window after it.

  A spike is more than `sigma` standard deviations above the mean of a window
  that is full; the rule of OLMo-core's optimizers. It enters the window as
  well, so that numbers which stay higher are good again in time.

  Args:
    window: of the last finite steps, float32 [size] each.
    metrics: of this step; what is watched are float32 scalars.
    sigma: 0 lets every finite step pass.
  """
  values = {name: metrics[name].astype(jnp.float32) for name in WATCHED}
  is_finite = jnp.all(jnp.isfinite(jnp.stack(list(values.values()))))
  is_good = is_finite
  for name, value in values.items():
    if sigma:  # what compares with NaN, of a window not full, is false
      limit = window[name].mean() + sigma * window[name].std()
      is_good &= ~(value > limit)
  moved = {k: jnp.append(window[k][1:], values[k]) for k in WATCHED}
  return is_good, select(is_finite, moved, window)


def clip(grads, norm, window: dict, sigma: float):
  """A gradient scaled down to `sigma` deviations above the last norms' mean.

  Before the window is full none is. Norms enter it as they were.
  """
  limit = window["grad_norm"].mean() + sigma * window["grad_norm"].std()
  scale = jnp.where(norm > limit, limit / norm, 1.0)  # NaN is never less
  return jax.tree.map(lambda g: g * scale, grads)


def select(is_good, new, old):
  """The one tree or the other, leaf by leaf where they lie."""
  return jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)


@jax.jit
def all_finite(tree):
  """Whether there is no NaN and no infinity in a tree of arrays."""
  return jnp.all(
    jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])
  )


class DivergedError(Exception):
  """The numbers are bad and do not get better.

  `first` is the first of the bad steps, `batch` the last of their batches.
  """

  def __init__(self, told: str, first: int, batch: int):
    super().__init__(told)
    self.first, self.batch = first, batch


class BadSteps:
  """Writes down the bad steps of this process, and counts those in a row.

  Args:
    workdir: of the run.
    most: so many in a row are a `DivergedError`; `row` is how many are.
  """

  def __init__(self, workdir, most: int):
    self._most, self.row = most, 0
    folder = pathlib.Path(workdir) / "bad_batches"
    self._path = folder / f"{jax.process_index():04d}.jsonl"

  def take(self, step: int, batch: int, metrics: dict, samples: dict):
    """Takes the numbers of a step, and who was in its batch.

    Args:
      step: its number.
      batch: that of its batch.
      metrics: as floats; `skipped` is 1 for a bad one.
      samples: indices in the source by the name of the array that has them.
    """
    if not metrics["skipped"]:
      self.row = 0
      return
    self.row += 1
    found = {name: metrics[name] for name in WATCHED}
    told = ", ".join(f"{name} {value:.5g}" for name, value in found.items())
    logging.warning("step %d is skipped: %s; see %s", step, told, self._path)
    row = {"step": step, "batch": batch, **found, "samples": samples}
    lines.Log(self._path).append(files.plain(row))
    if self.row >= self._most:
      raise DivergedError(
        f"{self.row} bad steps in a row, up to step {step}: {told}",
        first=step - self.row + 1,
        batch=batch,
      )


def samples_of(batch: dict) -> dict:
  """Indices of the samples in a host's batch, by the array that has them."""
  return {
    name: np.unique(ids[ids >= 0]).tolist()
    for name, ids in batch.items()
    if "_index_" in name
  }
