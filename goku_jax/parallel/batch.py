"""Rows of a batch: their number, and each host's share on its devices."""

import math

import jax
from jax.sharding import Mesh, NamedSharding
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
  devices = count_ranks(mesh)
  parts = devices * micro_batches
  for name, count in counts.items():
    if count < 0:
      raise UserError(f"data.{name}={count}: set 0 or more")
    if count % parts:
      raise UserError(
        f"data.{name}={count} does not divide among {devices} devices x"
        f" {micro_batches} micro-batches: set a multiple of {parts}"
      )


def count_ranks(mesh: Mesh) -> int:
  """Data-parallel ranks: parts of a batch's rows that lie apart."""
  return math.prod(mesh.shape[axis] for axis in rules.BATCH)


def place(mesh: Mesh, batch: dict) -> dict:
  """The global batch whose rows of this process are `batch` (numpy).

  The first dim is split over replica and fsdp. Every process holds an equal
  share, in the order of processes.
  """
  sharding = NamedSharding(mesh, P(rules.BATCH))
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }
