"""Hands each host's share of a batch to the devices of the mesh."""

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from goku_jax.parallel import rules


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
