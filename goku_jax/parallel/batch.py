"""Rows of a batch: each host's share to its devices, and results back."""

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from goku_jax.parallel import rules
from goku_jax.typing import UserError


def check_rows(mesh: Mesh, micro_batches: int, **counts: int):
  """Refuses rows that devices and micro-batches do not share evenly.

  Each device cuts its own rows into micro-batches, so both divide at once.

  Args:
    mesh: over whose devices the rows are split.
    micro_batches: parts of a batch.
    **counts: rows of a batch over all hosts, by their names in `config.data`.

  Raises:
    UserError: a count that they do not divide, or no micro-batch.
  """
  if micro_batches < 1:
    raise UserError(f"micro_batches={micro_batches}: set 1 or more")
  ranks = count_ranks(mesh)
  parts = ranks * micro_batches
  for name, count in counts.items():
    if count < 0:
      raise UserError(f"data.{name}={count}: set 0 or more")
    if count % parts:
      raise UserError(
        f"data.{name}={count} does not divide among {ranks} ranks of devices x"
        f" {micro_batches} micro-batches: set a multiple of {parts}"
      )


def check_tokens(mesh: Mesh, **counts: int):
  """Refuses packs whose tokens the axis `sequence` does not split evenly.

  Args:
    mesh: over whose devices the tokens are split.
    **counts: tokens of a pack, by their names in `config.data.pack`.
  """
  shards = mesh.shape[rules.TOKENS]
  for name, count in counts.items():
    if count % shards:
      raise UserError(
        f"data.pack.{name}={count} does not divide among"
        f" mesh.sequence={shards}: set a multiple of {shards}"
      )


def count_ranks(mesh: Mesh | AbstractMesh) -> int:
  """Data-parallel ranks: parts of a batch's rows that lie apart."""
  return math.prod(mesh.shape[axis] for axis in rules.BATCH)


def own_rows(mesh: Mesh, count: int) -> np.ndarray:
  """Rows of a batch of `count` that devices of this process hold, ascending.

  Processes whose devices split the tokens of the same packs have the same
  rows, and each reads them.
  """
  sharding = NamedSharding(mesh, P(rules.BATCH))
  held = sharding.addressable_devices_indices_map((count,)).values()
  return np.unique(np.concatenate([np.arange(count)[rows] for (rows,) in held]))


def count_readers(mesh: Mesh) -> float:
  """How many shares like that of this process make a whole batch."""
  ranks = count_ranks(mesh)
  return ranks / len(own_rows(mesh, ranks))


def replicate(mesh: Mesh, x):
  """A small array on every device, those of other processes too."""
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(x)


def fetch(tree):
  """Arrays of a mesh, whole on the host of every process; all call it."""

  def whole(x):
    if x.is_fully_addressable:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(whole, tree)


def place(mesh: Mesh, batch: dict) -> dict:
  """The global batch whose rows of this process are `batch` (numpy).

  They are the `own_rows` of the whole batch. The first dim is split over
  replica and fsdp, tokens over sequence.
  """
  return {name: _place(mesh, name, array) for name, array in batch.items()}


def _place(mesh, name, local):
  ranks = count_ranks(mesh)
  held = len(own_rows(mesh, ranks))
  count = len(local) * ranks // held
  rows = own_rows(mesh, count)
  if len(rows) != len(local):
    raise ValueError(
      f"{name} has {len(local)} rows, which do not divide evenly"
    )

  def part(index):
    mine, *rest = index
    # Rows of one device lie together here too.
    start = np.searchsorted(rows, mine.indices(count)[0])
    length = len(range(*mine.indices(count)))
    return local[(slice(start, start + length), *rest)]

  shape = (count, *local.shape[1:])
  sharding = NamedSharding(mesh, rules.batch_spec(name))
  return jax.make_array_from_callback(shape, sharding, part)
