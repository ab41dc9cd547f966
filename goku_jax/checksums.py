"""Checksums of arrays: of their bits, and the same on any mesh.

Each element's bits are mixed with its place in the array and all are added up,
modulo 2^32. Sums have no order, so any sharding gives the same number; and as
the mixing of one element is a bijection, one changed element always shows.
Changes of many cancel with a probability of 2^-32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Odd, so that products by them are bijections of 32 bits.
STRIDES = tuple(
  np.uint32(n)
  for n in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1)
)
FACTOR = np.uint32(0xCC9E2D51)
BLOCK = 2**18  # elements that are mixed at once, in the cache of a CPU


def checksum(x, starts=None):
  """uint32 of the bits of an array that one device has, or of a part of it.

  Args:
    x: of JAX or numpy, of five dims at most, four of 64-bit numbers.
    starts: where the part begins in the array, by dim; None is at zero.
  """
  bits = _bits(x)
  starts = starts or [0] * bits.ndim
  places = [
    (jnp.arange(size, dtype=jnp.uint32) + jnp.uint32(start)) * stride
    for size, start, stride in zip(bits.shape, starts, STRIDES, strict=False)
  ]
  columns = places.pop()
  rows = functools.reduce(jnp.add.outer, places, jnp.uint32(0)).reshape(-1)
  bits = bits.reshape(-1, len(columns))

  def mix(row):
    place, bits = row
    mixed = (bits ^ (place + columns)) * FACTOR  # wraps around, as all of it
    return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)

  batch_size = max(1, BLOCK // len(columns))
  sums = jax.lax.map(mix, (rows, bits), batch_size=batch_size)
  return sums.sum(dtype=jnp.uint32)


def _bits(x):
  """An array as uint32 of one dim or more, one an element or a half of one."""
  x, size = x.reshape(x.shape or (1,)), x.dtype.itemsize
  if x.dtype == np.bool_:
    return x.astype(np.uint32)
  if size > 4:
    return x[..., None].view(np.uint32)
  return x.view(f"uint{8 * size}").astype(np.uint32)


def start(flat: dict, *, signed_zeros: bool = True) -> dict:
  """Checksums of arrays by name, those on devices under way when it returns.

  Without `signed_zeros`, those of devices take -0 for 0.
  """
  sums = {
    name: _start(x, x.sharding, signed_zeros)
    if isinstance(x, jax.Array)
    else _start(_bits(x), None)  # JAX would cut 64 bits to 32
    for name, x in flat.items()
  }
  # At once: many small programs that talk can block each other on CPUs.
  parts = {name: x for name, x in sums.items() if x.ndim}
  whole = {
    name: jax.NamedSharding(x.sharding.mesh, jax.P())
    for name, x in parts.items()
  }
  return sums | jax.jit(_add_up, out_shardings=whole)(parts)


def fetch(started: dict) -> dict[str, int]:
  """What `start` has begun, as numbers."""
  return {name: int(value) for name, value in jax.device_get(started).items()}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _start(x, sharding, signed_zeros=True):
  """The checksum, or those of parts, which lie apart, in one dim."""
  if not signed_zeros:
    x = jnp.where(x == 0, jnp.zeros_like(x), x)
  if not isinstance(sharding, jax.NamedSharding):
    return checksum(x)
  axes = [
    (names,) if isinstance(names, str) else tuple(names or ())
    for names in sharding.spec
  ]
  axes += [()] * (max(1, x.ndim) - len(axes))

  def of_part(part):  # of one device
    starts = [
      jax.lax.axis_index(names) * size if names else 0
      for names, size in zip(axes, part.shape, strict=False)
    ]
    return checksum(part, [*starts, 0])[None]

  return jax.shard_map(
    of_part,
    mesh=sharding.mesh,
    in_specs=sharding.spec,
    out_specs=jax.P(sum(axes, ()) or None),
    check_vma=False,  # of copies, one is taken
  )(x)


def _add_up(parts):
  return {name: x.sum(dtype=jnp.uint32) for name, x in parts.items()}
