"""Checksums of arrays: of their bits, and the same on any mesh.

Each element's bits are mixed with its place in the array and all are added up,
modulo 2^32. Sums have no order, so any sharding gives the same number; and as
the mixing of one element is a bijection, one changed element always shows.
Places and bits of many at once cancel with a probability of 2^-32.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Odd: products by them are bijections of 32 bits (of Weyl and MurmurHash3).
PLACE, FIRST, SECOND = (
  np.uint32(n) for n in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
)


def checksum(x):
  """uint32 of the bits of an array of JAX, under jit too, or of numpy."""
  xp = jnp if isinstance(x, jax.Array) else np
  bits = _bits(x, xp)
  place = xp.zeros((1,) * bits.ndim, np.uint32)
  for axis, size in enumerate(bits.shape):  # wraps around, as all that follows
    steps = xp.arange(size, dtype=np.uint32)
    shape = [1] * bits.ndim
    shape[axis] = size
    place = place * PLACE + steps.reshape(shape)
  mixed = (bits ^ (place * PLACE)) * FIRST
  mixed = (mixed ^ (mixed >> 15)) * SECOND
  return (mixed ^ (mixed >> 13)).sum(dtype=np.uint32)


def _bits(x, xp):
  """An array as uint32, one for each element or for each half of one."""
  size = x.dtype.itemsize
  if x.dtype == np.bool_:
    return x.astype(np.uint32)
  if size > 4:
    return xp.expand_dims(x, -1).view(np.uint32)
  return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[size]).astype(
    np.uint32
  )


@jax.jit
def _on_devices(arrays):
  return jax.tree.map(checksum, arrays)


def start(flat: dict) -> dict:
  """Checksums of arrays by name, those on devices under way when it returns."""
  on_devices = {k: x for k, x in flat.items() if isinstance(x, jax.Array)}
  with np.errstate(over="ignore"):
    on_host = {k: checksum(x) for k, x in flat.items() if k not in on_devices}
  return {**on_host, **_on_devices(on_devices)}


def fetch(started: dict) -> dict[str, int]:
  """What `start` has begun, as numbers."""
  return {name: int(value) for name, value in jax.device_get(started).items()}
