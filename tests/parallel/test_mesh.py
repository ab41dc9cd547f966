"""Meshes fill the devices that there are, or say why not."""

import jax
import jax.numpy as jnp
import pytest

from goku_jax.parallel import mesh as meshes
from goku_jax.typing import UserError


@pytest.mark.parametrize(
  ("asked", "sizes"),
  [
    (dict(), (1, 8, 1, 1)),
    (dict(replica=2), (2, 4, 1, 1)),
    (dict(replica=-1, fsdp=2), (4, 2, 1, 1)),
    (dict(replica=8, fsdp=1), (8, 1, 1, 1)),
    (dict(replica=8), (8, 1, 1, 1)),
    (dict(replica=2, sequence=2), (2, 2, 2, 1)),
    (dict(fsdp=2, sequence=-1, tensor=2), (1, 2, 2, 2)),
  ],
)
def test_an_axis_of_minus_one_takes_what_is_left(asked, sizes):
  mesh = meshes.make_mesh(**asked)
  assert mesh.axis_names == ("replica", "fsdp", "sequence", "tensor")
  assert mesh.devices.shape == sizes
  assert mesh.size == 8


@pytest.mark.parametrize(
  "asked",
  [
    dict(replica=3),
    dict(replica=2, fsdp=2),
    dict(replica=16, fsdp=1),
    dict(replica=-1, fsdp=-1),
    dict(replica=0),
    dict(replica=-2, fsdp=-4),
    dict(replica=-2),
  ],
)
def test_axes_that_do_not_make_the_devices_are_refused_in_one_line(asked):
  with pytest.raises(UserError, match="does not make 8 devices; set") as error:
    meshes.make_mesh(**asked)
  assert "\n" not in str(error.value)


def test_use_enters_the_mesh_and_the_activation_rules_together():
  """A named activation is then split over the devices."""
  import flax.linen as nn

  mesh = meshes.make_mesh(replica=2, sequence=2)
  name = lambda x: nn.with_logical_constraint(x, ("batch", "tokens", None))
  with meshes.use(mesh) as used:
    assert used is mesh
    out = jax.jit(lambda x: name(x * 2))(jnp.ones((8, 4, 2)))
  assert {shard.data.shape for shard in out.addressable_shards} == {(2, 2, 2)}
