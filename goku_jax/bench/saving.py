"""What saving and restoring a checkpoint cost beside copies of the same bytes.

The state is noise in float32, split over the devices there are: the same bytes
as files, written with fsync and read, and as arrays, copied in memory, are what
a checkpoint is held against. Nothing is dropped from the cache of the disk, so
both kinds of reading are of memory.
"""

import collections
import math
import pathlib
import shutil
import tempfile
import time

import jax
import numpy as np

from goku_jax import checkpoint, checksums, manifest
from goku_jax.bench import machine, sides
from goku_jax.files import sync

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
      for name, took in _round(made / str(round_), trees):
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
    "digests_share_of_save": (seconds["checksums"] + seconds["digests"])
    / seconds["save"],
    "restore_memory_over_state": (peak - empty) / size,
  }


def make_state(gib: float, seed: int = 0) -> dict:
  """Trees of arrays [rows, 1024] of float32 noise, rows over all devices."""
  rows = round(gib * 2**30 / ARRAYS / 4096)
  rng = np.random.default_rng(seed)
  sharding = _sharding(1)
  return {
    "params": {
      f"{i:02d}": jax.device_put(
        rng.standard_normal((rows, 1024), np.float32), sharding
      )
      for i in range(ARRAYS)
    }
  }


def _sharding(columns):
  """Rows over the devices, or over some of them and columns over the rest."""
  devices = np.array(jax.devices()).reshape(-1, columns)
  mesh = jax.sharding.Mesh(devices, ("rows", "columns"))
  return jax.NamedSharding(mesh, jax.P("rows", "columns"))


def _abstract(trees, sharding):
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(shape, trees)


def _round(folder, trees):
  """What was done, and the seconds that it took."""
  folder.mkdir()
  leaves = jax.tree.leaves(trees)
  host = [np.asarray(x) for x in leaves]
  yield "copy", _time(lambda: [np.array(x) for x in host])
  yield (
    "checksums",
    _time(
      lambda: [checksums.fetch(checksums.start(t)) for t in trees.values()]
    ),
  )
  with checkpoint.Checkpointer(folder / "checkpoints") as checkpointer:
    start = time.perf_counter()
    checkpointer.save(0, trees, POSITION)
    yield "save_blocks", time.perf_counter() - start
    checkpointer.wait()
    yield "save", time.perf_counter() - start
  files = [p for p in (folder / "checkpoints").rglob("*") if p.is_file()]
  yield "digests", _time(lambda: [manifest.describe(p) for p in files])
  plain = folder / "plain"
  plain.mkdir()
  yield "plain_write", _time(lambda: _write(plain, host))
  yield "plain_copy", _time(lambda: _copy(plain, folder / "copy"))
  del host
  for name, columns in (("restore", 1), ("other_mesh", _other())):
    abstract = _abstract(trees, _sharding(columns))
    yield (
      name,
      _time(
        lambda abstract=abstract: jax.block_until_ready(
          checkpoint.restore(folder / "checkpoints", abstract)[1]
        )
      ),
    )


def _other():
  count = jax.device_count()
  return count // 2 if count % 2 == 0 else 1


def _time(fn):
  start = time.perf_counter()
  fn()
  return time.perf_counter() - start


def _write(folder, arrays):
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
  trees = {k: _shapes(gib) for k in ("params",)}
  jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[0]))
  machine.forget_peak()
  empty, _ = machine.peak_memory()
  abstract = _abstract(trees, _sharding(1))
  kept = checkpoint.restore(folder, abstract)
  peak, _ = machine.peak_memory()
  del kept
  connection.send((peak, empty))


def _shapes(gib):
  rows = round(gib * 2**30 / ARRAYS / 4096)
  return {
    f"{i:02d}": jax.ShapeDtypeStruct((rows, 1024), "float32")
    for i in range(ARRAYS)
  }
