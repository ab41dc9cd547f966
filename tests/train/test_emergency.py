"""What cannot have copies on the hosts is refused in one line."""

import pytest

from goku_jax.parallel import mesh as meshes
from goku_jax.train.emergency import Emergency
from goku_jax.typing import UserError


@pytest.mark.parametrize("replica", [1, 2])
def test_a_replica_that_has_no_process_of_its_own_is_refused(replica, tmp_path):
  mesh = meshes.make_mesh(replica=replica)
  with pytest.raises(UserError, match=f"replica={replica} over 1 processes"):
    Emergency(mesh, tmp_path, folder=str(tmp_path), every_steps=2)


@pytest.mark.parametrize(
  "half", [dict(folder="/dev/shm/goku"), dict(every_steps=2)]
)
def test_half_of_the_settings_is_refused(half, tmp_path):
  with pytest.raises(UserError, match="set both, or neither"):
    Emergency(meshes.make_mesh(), tmp_path, **half)


def test_without_settings_nothing_is_copied(tmp_path):
  with Emergency(meshes.make_mesh(), tmp_path) as local:
    assert not local.is_due(2)
    assert local.restore({}) is None
    local.remove()
  assert not any(tmp_path.iterdir())
