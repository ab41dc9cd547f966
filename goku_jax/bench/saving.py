"""What saving and restoring a checkpoint cost beside copies of the same bytes.

The state is noise in float32, split over the devices there are: the same bytes
as files, written with fsync and read, and as arrays, copied in memory, are what
a checkpoint is held against. Nothing is dropped from the cache of the disk, so
both kinds of reading are of memory.
"""

import collections
import contextlib
import math
import pathlib
import shutil
import tempfile
import time

import jax
import numpy as np

from goku_jax import checkpoint, store
from goku_jax.bench import machine, sides
from goku_jax.files import sync
from goku_jax.trees import flatten

ARRAYS = 16
POSITION = {"step": 0, "batch": 0}


def compare(rounds: int, gib: float, folder=None) -> dict:
  """Seconds of the fastest of some rounds, and what they are times of what.

  Args:
    rounds: each of all, one after the other.
    gib: of the state.
    folder: on the disk that is measured; None is the system's for temporaries.
  """
  with tempfile.TemporaryDirectory(dir=folder) as made:
    made = pathlib.Path(made)
    trees = make_state(gib)
    seconds = collections.defaultdict(lambda: math.inf)
    for round_ in range(rounds):
      for name, took in _round(made / str(round_), gib, trees):
        seconds[name] = min(seconds[name], took)
      shutil.rmtree(made / str(round_))
    with checkpoint.Checkpointer(made / "kept") as checkpointer:
      checkpointer.save(0, trees, POSITION)
    del trees
    with sides.start(_restore_alone, made / "kept", gib) as side:
      peak, empty = sides.ask(side, "peak")
  size = gib * 2**30
  return {
    "gib": gib,
    "seconds": dict(seconds),
    "blocking_over_memory_copy": seconds["save_blocks"] / seconds["copy"],
    "save_over_plain_files": seconds["save"] / seconds["plain_write"],
    "restore_over_plain_files": seconds["restore"] / seconds["plain_copy"],
    "other_mesh_over_plain_files": seconds["other_mesh"]
    / seconds["plain_copy"],
    "digests_share_of_save": 1 - seconds["orbax_alone"] / seconds["save"],
    "restore_memory_over_state": (peak - empty) / size,
  }


def make_state(gib: float, seed: int = 0) -> dict:
  """Trees of arrays [rows, 1024] of float32 noise, rows over all devices."""
  rng = np.random.default_rng(seed)
  make = lambda x: jax.device_put(
    rng.standard_normal(x.shape, x.dtype), x.sharding
  )
  return jax.tree.map(make, shapes(gib, _sharding(1)))


def shapes(gib: float, sharding) -> dict:
  """The trees without their numbers."""
  count = jax.device_count()
  rows = max(1, round(gib * 2**30 / ARRAYS / 4096 / count)) * count
  array = jax.ShapeDtypeStruct((rows, 1024), np.float32, sharding=sharding)
  return {"params": {f"{i:02d}": array for i in range(ARRAYS)}}


def _sharding(columns):
  """Rows over the devices, or over some of them and columns over the rest."""
  devices = np.array(jax.devices()).reshape(-1, columns)
  mesh = jax.sharding.Mesh(devices, ("rows", "columns"))
  return jax.NamedSharding(mesh, jax.P("rows", "columns"))


def _round(folder, gib, trees):
  """What was done, and the seconds that it took."""
  folder.mkdir()
  host = [np.asarray(x) for x in jax.tree.leaves(trees)]
  yield "copy", _time(_copy_in_memory, host)
  saved, plain = folder / "checkpoints", folder / "plain"
  with checkpoint.Checkpointer(saved) as checkpointer:
    start = time.perf_counter()
    checkpointer.save(0, trees, POSITION)
    yield "save_blocks", time.perf_counter() - start
    checkpointer.wait()
    yield "save", time.perf_counter() - start
  yield "orbax_alone", _time(_save_bare, folder / "bare", trees)
  yield "plain_write", _time(_write, plain, host)
  yield "plain_copy", _time(_copy, plain, folder / "copy")
  for name, columns in (("restore", 1), ("other_mesh", _other())):
    abstract = shapes(gib, _sharding(columns))
    yield name, _time(_restore, saved, abstract)


def _time(fn, *args):
  start = time.perf_counter()
  fn(*args)
  return time.perf_counter() - start


def _copy_in_memory(arrays):
  return [np.array(x) for x in arrays]


def _save_bare(folder, trees):
  """The same save, brought to the disk, without digests and manifest."""
  with contextlib.closing(checkpoint.open_orbax()) as orbax:
    flat = {name: flatten(tree, name) for name, tree in trees.items()}
    orbax.save(folder, args=checkpoint.orbax_arguments(flat))
    orbax.wait_until_finished()
  for path in folder.rglob("*"):
    store.settle(path)


def _restore(folder, abstract):
  _, trees, _ = checkpoint.restore(folder, abstract)
  jax.block_until_ready(trees)


def _other():
  count = jax.device_count()
  return count // 2 if count % 2 == 0 else 1


def _write(folder, arrays):
  folder.mkdir()
  for i, x in enumerate(arrays):
    x.tofile(folder / str(i))
    sync(folder / str(i))
  sync(folder)


def _copy(source, target):
  shutil.copytree(source, target)
  for path in target.iterdir():
    sync(path)
  sync(target)


def _restore_alone(connection, folder, gib):
  """The peak of a process that restores, and of one that has not yet."""
  connection.recv()
  jax.block_until_ready(jax.numpy.zeros(8))
  machine.forget_peak()
  empty, _ = machine.peak_memory()
  _restore(folder, shapes(gib, _sharding(1)))
  connection.send((machine.peak_memory()[0], empty))
