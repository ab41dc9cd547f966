"""The host's rows, in their order, over all devices."""

import jax
import numpy as np
import pytest

from goku_jax.parallel import mesh as meshes
from goku_jax.parallel.batch import check_rows, check_tokens, own_rows, place
from goku_jax.typing import UserError


@pytest.mark.parametrize("replica", [1, 2, 8])
def test_rows_are_split_over_all_devices_in_order(replica):
  mesh = meshes.make_mesh(replica=replica)
  batch = {
    "tokens_BLP": np.arange(96, dtype=np.float32).reshape(16, 3, 2),
    "ids_BG": np.arange(16, dtype=np.int32)[:, None],
  }
  placed = place(mesh, batch)
  assert placed.keys() == batch.keys()
  for name, array in placed.items():
    assert array.dtype == batch[name].dtype
    np.testing.assert_array_equal(jax.device_get(array), batch[name])
    shards = {s.device: s.data for s in array.addressable_shards}
    rows = [shards[device] for device in mesh.devices.flat]
    np.testing.assert_array_equal(np.concatenate(rows), batch[name])
    assert {len(row) for row in rows} == {2}


def test_tokens_are_split_over_the_sequence_and_nothing_else_is():
  mesh = meshes.make_mesh(fsdp=2, sequence=4)
  batch = {
    "tokens_BLP": np.arange(96, dtype=np.float32).reshape(4, 8, 3),
    "text_ids_BS": np.arange(32, dtype=np.int32).reshape(4, 8),
  }
  placed = place(mesh, batch)
  for name, shape in dict(tokens_BLP=(2, 2, 3), text_ids_BS=(2, 8)).items():
    np.testing.assert_array_equal(jax.device_get(placed[name]), batch[name])
    parts = placed[name].addressable_shards
    assert {part.data.shape for part in parts} == {shape}


def test_a_process_reads_the_rows_of_its_devices():
  """One process has all of them, whatever splits the rows."""
  for axes in (dict(), dict(sequence=4), dict(replica=2, tensor=4, fsdp=1)):
    rows = own_rows(meshes.make_mesh(**axes), 16)
    np.testing.assert_array_equal(rows, np.arange(16))


def test_tokens_that_the_sequence_does_not_divide_are_refused():
  mesh = meshes.make_mesh(sequence=4)
  check_tokens(mesh, tokens=64)
  with pytest.raises(UserError, match=r"pack\.tokens=66 .* a multiple of 4"):
    check_tokens(mesh, tokens=66)


def test_rows_are_a_multiple_of_devices_and_micro_batches():
  mesh = meshes.make_mesh(replica=2)
  check_rows(mesh, 2, num_clips=32, num_images=0)
  with pytest.raises(UserError, match=r"num_images=24 .* a multiple of 16"):
    check_rows(mesh, 2, num_clips=32, num_images=24)


def test_rows_that_the_devices_cannot_share_are_refused():
  with pytest.raises(ValueError, match="evenly divide"):
    place(meshes.make_mesh(), {"x": np.zeros((12, 2))})
