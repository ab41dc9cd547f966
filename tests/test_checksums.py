"""A checksum is of the bits, and no mesh changes it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from goku_jax import checksums

DTYPES = ("bool", "int8", "uint16", "float32", "int64", "float64")


def make_array(dtype, shape=(6, 8, 3)):
  bits = np.random.default_rng(0).integers(0, 256, (*shape, dtype.itemsize))
  if dtype == np.bool_:
    return bits[..., 0] > 127
  return bits.astype(np.uint8).view(dtype)[..., 0]


def summed(array):
  return checksums.fetch(checksums.start({"": array}))[""]


@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.bfloat16])
def test_every_bit_counts(dtype):
  array = make_array(np.dtype(dtype))
  want = summed(array)
  flat = array.copy().reshape(-1).view(np.uint8)
  for place in range(flat.size):
    for bit in (1,) if array.dtype == np.bool_ else (1, 128):
      flat[place] ^= bit
      changed = flat.view(array.dtype).reshape(array.shape)
      assert summed(changed) != want
      flat[place] ^= bit


def test_the_place_of_an_element_counts():
  array = make_array(np.dtype("float32"))
  sums = {(summed(np.roll(array, 1, axis))) for axis in range(3)}
  sums.add(summed(array))
  sums.add(summed(array.reshape(8, 6, 3)))
  assert len(sums) == 5


@pytest.mark.parametrize("dtype", ["int8", "float32", ml_dtypes.bfloat16])
def test_devices_and_the_host_agree_on_any_mesh(dtype):
  array = make_array(np.dtype(dtype), (8, 8))
  want = {"a": (summed(array))}
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=auto)
  for spec in [(), ("a",), ("b", "a"), (None, ("a", "b"))]:
    sharding = jax.NamedSharding(mesh, jax.P(*spec))
    placed = jax.device_put(array, sharding)
    assert checksums.fetch(checksums.start({"a": placed})) == want


def test_scalars_and_many_arrays():
  flat = {"a": jnp.int32(7), "b": np.int64(2**40), "c": jnp.arange(3)}
  found = checksums.fetch(checksums.start(flat))
  other = checksums.fetch(checksums.start({**flat, "b": np.int64(2**41)}))
  assert [k for k in flat if found[k] != other[k]] == ["b"]
