"""The device mesh.

`replica` copies of the state, each sharded over `fsdp`; `sequence` splits the
samples themselves.
"""

import contextlib
import math

import flax.linen as nn
import jax

from goku_jax.parallel import rules
from goku_jax.typing import UserError

AXES = ("replica", "fsdp", "sequence")
AUTO = (jax.sharding.AxisType.Auto,) * len(AXES)  # Linen knows no Explicit


def make_mesh(
  replica: int = 1, fsdp: int = -1, sequence: int = 1
) -> jax.sharding.Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  sizes = [replica, fsdp, sequence]
  count = jax.device_count()
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and known > 0 and count % known == 0:
    sizes[sizes.index(-1)] = count // known
  if math.prod(sizes) != count or min(sizes) < 1:
    raise UserError(
      f"mesh replica={replica} x fsdp={fsdp} x sequence={sequence} does not"
      f" make {count} devices; set one of them to -1 to fill"
    )
  return jax.make_mesh(sizes, AXES, axis_types=AUTO)


def make_local_mesh() -> jax.sharding.Mesh:
  """A mesh over the devices of this process, all of them `fsdp`."""
  devices = jax.local_devices()
  sizes = (1, len(devices), 1)
  return jax.make_mesh(sizes, AXES, axis_types=AUTO, devices=devices)


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh):
  """Enters the mesh and the activation rules together, never one alone."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules.ACTIVATIONS):
    yield mesh
