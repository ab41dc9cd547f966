"""The first hour on a pod: whether every device, link and kernel does its part.

Every process does the same checks in the same order, prints a line for each as
soon as it is there, and ends with the same status. docs/first_hour.md says what
the lines mean.
"""

import contextlib
import faulthandler
import sys
from collections.abc import Iterator

import jax

from goku_jax import costs
from goku_jax.bench import pod_devices, pod_links, pod_steps
from goku_jax.bench.pod_devices import Check
from goku_jax.parallel import mesh as meshes
from goku_jax.plan import topology as topologies
from goku_jax.typing import UserError

# A broken link may hang forever. Compiling a step of a large model counts too.
DEADLINE_SECONDS = 1800


def report(config, topology: str | None, short: bool) -> dict:
  """Prints a line a check; returns of each, by name, `passed` and `figure`.

  A process in which one check takes DEADLINE_SECONDS says where it hangs and
  ends with status 1.
  """
  found = {}
  with _deadline():
    for check in run(config, topology, short):
      word = "pass" if check.passed else "FAIL"
      print(f"{word}  {check.name:<28} {check.figure}", flush=True)
      found[check.name] = {"passed": check.passed, "figure": check.figure}
      _rearm()
  return found


@contextlib.contextmanager
def _deadline():
  _rearm()
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()


def _rearm():
  faulthandler.dump_traceback_later(
    DEADLINE_SECONDS, exit=True, file=sys.__stderr__
  )


def run(config, topology: str | None, short: bool) -> Iterator[Check]:
  """The checks of a config of stage=flow, the cheap ones first.

  Args:
    config: whose mesh, kernels and step are meant.
    topology: what should be here, as "v5p:8x8x4"; None takes what is.
    short: leave out kernels and steps.

  Raises:
    UserError: there is no such topology.
  """
  yield check_devices(topology)
  sizes = pod_devices.choose_sizes(short)
  yield from pod_devices.check(sizes)
  try:
    mesh = meshes.make_mesh(**config.mesh)
  except UserError as error:
    yield Check("mesh", False, str(error))
    return
  axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
  yield Check("mesh", True, axes)
  yield from pod_links.check_axes(mesh, sizes.gathered)
  if short:
    return
  yield from pod_steps.check_kernels(config)
  try:
    yield from pod_steps.check_steps(config)
  except UserError as error:
    yield Check("steps", False, str(error))


def check_devices(topology: str | None) -> Check:
  """Number and kind of devices, against a slice's name."""
  devices = jax.devices()
  kind, hosts = devices[0].device_kind, jax.process_count()
  told = f"{len(devices)} of {kind} on {hosts} host{'s' * (hosts > 1)}"
  if topology is None:
    return Check("devices", True, told)
  wanted = topologies.count_devices(topology)
  chip = costs.CHIPS[topologies.GENERATIONS[topology.partition(":")[0]].chip]
  same = len(devices) == wanted and costs.find_chip(kind) == chip
  return Check("devices", same, f"{told}; {topology} has {wanted}")
