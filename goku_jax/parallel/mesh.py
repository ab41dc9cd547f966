"""The device mesh.

`replica` copies of the state, each sharded over `fsdp` and `sequence`;
`sequence` splits the samples themselves, `tensor` heads and MLPs. Slices of a
TPU pod, which a slower network joins, each hold whole replicas.
"""

import contextlib
import math

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from goku_jax.parallel import rules
from goku_jax.typing import UserError

AXES = ("replica", "fsdp", "sequence", "tensor")
AUTO = (jax.sharding.AxisType.Auto,) * len(AXES)  # Linen knows no Explicit


def make_mesh(
  replica: int = 1,
  fsdp: int = -1,
  sequence: int = 1,
  tensor: int = 1,
  *,
  devices=None,
) -> Mesh:
  """A mesh over all devices; one axis may be -1 and takes what is left.

  Raises:
    UserError: the axes do not multiply to the number of devices, or a replica
      would reach over several slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes, count = [replica, fsdp, sequence, tensor], len(devices)
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and known > 0 and count % known == 0:
    sizes[sizes.index(-1)] = count // known
  if math.prod(sizes) != count or min(sizes) < 1:
    asked = f"replica={replica} x fsdp={fsdp} x sequence={sequence}"
    raise UserError(
      f"mesh {asked} x tensor={tensor} does not make {count} devices; set one"
      " of them to -1 to fill"
    )
  return Mesh(_arrange(sizes, devices), AXES, axis_types=AUTO)


def _arrange(sizes, devices):
  """Devices by axis, neighbours on the network where they talk most."""
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  # An axis of 16 on 8x8x4 chips takes parts of two axes of the torus.
  options = dict(devices=devices, allow_split_physical_axes=True)
  if slices == 1:
    return mesh_utils.create_device_mesh(sizes, **options)
  replica, *others = sizes
  if replica % slices:
    raise UserError(
      f"mesh.replica={replica} does not divide among {slices} slices: set a"
      f" multiple of {slices}, since a replica lies within one slice"
    )
  return mesh_utils.create_hybrid_device_mesh(
    [replica // slices, *others], [slices, 1, 1, 1], **options
  )


def make_local_mesh() -> Mesh:
  """A mesh over the devices of this process, all of them `fsdp`."""
  return make_mesh(devices=jax.local_devices())


def make_one_device_mesh() -> Mesh:
  """A mesh of one device of this process, for what it computes by itself."""
  return make_mesh(devices=jax.local_devices()[:1])


@contextlib.contextmanager
def use(mesh: Mesh):
  """Enters the mesh and the activation rules together, never one alone."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules.ACTIVATIONS):
    yield mesh
