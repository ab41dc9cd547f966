"""Exchanges along each axis of a mesh: how fast, and whether they are right.

Letters: S devices along the axis, n numbers of a row, one row a device.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from goku_jax.bench import machine, pod_devices
from goku_jax.bench.pod_devices import Check


def check_axes(mesh, gathered: int) -> Iterator[Check]:
  """Bytes/s that leave a device, for each exchange along each long axis.

  Args:
    mesh: of all devices.
    gathered: numbers that an all-gather leaves on a device.
  """
  for axis, size in mesh.shape.items():
    if size > 1:
      for kind, (send, expect, share) in exchanges(axis, size).items():
        name = f"{kind} over {axis}"
        yield check_exchange(mesh, axis, name, send, expect, share, gathered)


def exchanges(axis: str, size: int) -> dict:
  """By name, what a device does with its row, what that gives, what it sends.

  `expect` takes the rows of the group, [S, n], and the place in it; the last is
  the share of a row that leaves the device.
  """
  over = dict(axis_name=axis, tiled=True)
  on = [(i, (i + 1) % size) for i in range(size)]
  part = lambda rows_Sn, k: np.split(rows_Sn, size, 1)[k]
  others = (size - 1) / size
  return {
    "all-gather": (
      lambda x: jax.lax.all_gather(x, **over),
      lambda rows_Sn, k: rows_Sn,
      size - 1,
    ),
    "reduce-scatter": (
      lambda x: jax.lax.psum_scatter(x, scatter_dimension=1, **over),
      lambda rows_Sn, k: part(rows_Sn, k).sum(0, keepdims=True),
      others,
    ),
    "all-to-all": (
      lambda x: jax.lax.all_to_all(x, split_axis=1, concat_axis=0, **over),
      part,
      others,
    ),
    "permute": (
      lambda x: jax.lax.ppermute(x, axis, on),
      lambda rows_Sn, k: rows_Sn[[k - 1]],
      1,
    ),
  }


def check_exchange(mesh, axis, name, send, expect, share, gathered) -> Check:
  """An exchange of rows of known numbers; see `exchanges`.

  A host's seconds are those of its slowest group, so that all hosts of a slow
  one are named.
  """
  size = mesh.shape[axis]
  n = gathered // size // size * size
  spec = P(mesh.axis_names)
  x = jax.make_array_from_callback(
    (mesh.size, n),
    NamedSharding(mesh, spec),
    lambda at: _row(at[0].indices(mesh.size)[0], n)[None],
  )
  run = jax.jit(
    jax.shard_map(
      send, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
  )
  out, seconds = machine.fastest(run, x)
  found = {shard.device: shard.data for shard in out.addressable_shards}
  rows = []
  for device in pod_devices.local_devices():
    group, k = _group(mesh, axis, device)
    wanted = expect(np.stack([_row(i, n) for i in group]), k)
    rows.append((seconds, not np.array_equal(found[device], wanted)))
  table, who = pod_devices.gather(rows)
  sent = 4 * n * share
  slow = pod_devices.choose_slow()
  return pod_devices.judge_speed(
    name, table[:, 0], who, sent, "GB/s", slow, wrong=table[:, 1] > 0
  )


def _row(place, n):
  """Whole numbers so small that sums over a thousand devices are exact."""
  return (place % 251 * 13 + np.arange(n) % 13).astype(np.float32)


def _group(mesh, axis, device):
  """Places of the devices that a device exchanges with, and its own there."""
  places = np.arange(mesh.size).reshape(mesh.devices.shape)
  at = list(np.argwhere(mesh.devices == device)[0])
  along = mesh.axis_names.index(axis)
  k, at[along] = at[along], slice(None)
  return places[tuple(at)], k
