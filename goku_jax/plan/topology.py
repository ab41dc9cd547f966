"""Devices of TPU slices that are not there.

libtpu compiles for any topology it knows, on any machine; it is the extra
`tpu`. Without it as many pretend CPU devices take the place of the slice.
"""

import importlib.util
import math
import os
import re
from typing import NamedTuple

from goku_jax.typing import UserError


class Generation(NamedTuple):
  """Of TPUs, as topologies name it."""

  example: str  # a slice
  chip: str  # its name in `costs.CHIPS`
  devices: int  # of JAX, a chip


GENERATIONS = {
  "v4": Generation("v4:4x4x4", "TPU v4", 2),
  "v5e": Generation("v5e:16x16", "TPU v5e", 1),
  "v5p": Generation("v5p:8x8x4", "TPU v5", 1),
  "v6e": Generation("v6e:16x16", "TPU v6", 1),
  "tpu7x": Generation("tpu7x:4x4x4", "TPU7x", 2),
}
KNOWN = ", ".join(generation.example for generation in GENERATIONS.values())
# No chip is looked for, no metadata server asked, nothing said about either;
# another process may hold libtpu.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
}


def set_environment():
  """What must be set before JAX is imported."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)


def has_compiler() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def count_devices(name: str, slices: int = 1) -> int:
  """JAX devices of a topology such as "v5p:8x8x4".

  Raises:
    UserError: it is none by its name.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
  if not match or match[1] not in GENERATIONS or slices < 1:
    raise UserError(
      f"--topology={name} with --slices={slices} is none: name one as {KNOWN}"
    )
  chips = math.prod(map(int, match[2].split("x")))
  return chips * GENERATIONS[match[1]].devices * slices


def find_devices(name: str, slices: int = 1) -> list:
  """Devices of a topology such as "v5p:8x8x4", to compile for.

  Without libtpu, pretend CPU devices, as many.

  Args:
    name: generation and chips along each axis.
    slices: how many of them a slower network joins.

  Raises:
    UserError: there is no such topology.
  """
  count = count_devices(name, slices)
  if not has_compiler():
    return _pretend(count)
  from jax.experimental import topologies

  more = {"num_slices": slices} if slices > 1 else {}
  try:
    return topologies.get_topology_desc(name, "tpu", **more).devices
  except Exception as error:  # of libtpu, which says what is wrong in a line
    raise UserError(
      f"--topology={name} is none that libtpu knows: name one as {KNOWN}"
      f" ({str(error).splitlines()[0][:200]})"
    ) from error


def _pretend(count):
  import jax

  jax.config.update("jax_num_cpu_devices", count)
  return jax.devices("cpu")
