"""Finds devices that compute wrong without a word.

A compiled step is deterministic, so one that is done twice gives the same
bits; and copies of the same part of the parameters stay the same. By option,
every k steps both are compared, by checksums that each device takes of its own
part. What differs names host and device.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import checksums
from goku_jax.train.step import train_step


class CorruptionError(RuntimeError):
  """A device has computed what another one, or itself, did not."""


class Replay:
  """Compares, for the steps whose number `every` divides; 0: for none.

  A comparison takes the time of two steps, and memory for parameters that are
  not donated.

  Args:
    every: so many steps.
    placed: shardings of the state.
    **settings: keywords of `train_step`.
  """

  def __init__(self, every: int, placed, **settings):
    self._every = every
    self._shardings = jax.tree.leaves(placed.params)
    own = functools.partial(own_checksums, self._shardings)
    step = functools.partial(train_step, **settings)
    self._replay = jax.jit(lambda *args: own(step(*args)[0].params))
    self._copies = jax.jit(own)

  def is_due(self, step: int) -> bool:
    """Whether the devices are compared before a step."""
    return self._every > 0 and step > 0 and step % self._every == 0

  def check(self, step: int, state, batch, rng):
    """Raises `CorruptionError` in every process if a device errs."""
    shapes = [x.shape for x in jax.tree.leaves(state.params)]
    odd = odd_copies(self._shardings, shapes, self._copies(state.params))
    told = "holds other parameters than the devices with the same part"
    if not odd:
      one, two = (np.asarray(self._replay(state, batch, rng)) for _ in range(2))
      devices = self._shardings[0].mesh.devices.flat
      rows = (one != two).any(axis=1)
      odd = [d for d, differs in zip(devices, rows, strict=True) if differs]
      told = "computed the same step twice and got two results"
      if len(odd) > 1:  # what one device errs, gradients bring to all
        told += ", or one of them did"
    if odd:
      named = ", ".join(f"{d} of process {d.process_index}" for d in odd)
      raise CorruptionError(f"step {step}: {named} {told}")


def own_checksums(shardings, tree):
  """uint32 [devices, arrays], of the part that each device has of each array.

  Args:
    shardings: of the arrays, on one mesh: its devices, as `devices.flat` has
      them, are the rows.
    tree: the arrays.
  """
  mesh = shardings[0].mesh
  own = jax.shard_map(
    lambda *arrays: jnp.stack([checksums.checksum(x) for x in arrays])[None],
    mesh=mesh,
    in_specs=tuple(sharding.spec for sharding in shardings),
    out_specs=jax.P(mesh.axis_names),
    check_vma=False,  # copies are what is not believed to be equal
  )
  found = own(*jax.tree.leaves(tree))
  everywhere = jax.NamedSharding(mesh, jax.P())
  return jax.lax.with_sharding_constraint(found, everywhere)


def odd_copies(shardings, shapes, sums) -> list:
  """Devices whose part of an array is not what most others have of it.

  Args:
    shardings: of the arrays.
    shapes: of them.
    sums: as `own_checksums` gives them.
  """
  sums, odd = np.asarray(sums), []
  row = {d: i for i, d in enumerate(shardings[0].mesh.devices.flat)}
  for column, (sharding, shape) in enumerate(
    zip(shardings, shapes, strict=True)
  ):
    parts = collections.defaultdict(list)
    for device, index in sharding.devices_indices_map(shape).items():
      parts[str(index)].append(device)
    for devices in parts.values():
      found = [sums[row[d], column] for d in devices]
      (most, count), *others = collections.Counter(found).most_common()
      if others:  # where none is the most, none is believed
        believed = most if count > others[0][1] else None
        odd += [d for d, x in zip(devices, found, strict=True) if x != believed]
  return sorted(set(odd), key=row.get)
