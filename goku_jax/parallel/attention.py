"""Puts an attention function on the mesh: every device its own packs."""

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from goku_jax.parallel import rules


def shard_attention(attention_fn, mesh: Mesh):
  """`attention_fn` on the packs of each device; nothing is exchanged.

  Left to the partitioner, a loop over packs would gather them all first.
  """
  if mesh.size == 1:
    return attention_fn
  return jax.shard_map(
    attention_fn,
    mesh=mesh,
    in_specs=P(rules.BATCH),
    out_specs=P(rules.BATCH),
  )
