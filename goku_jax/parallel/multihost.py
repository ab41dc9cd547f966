"""Several processes, found from the environment and joined into one JAX.

Looked for in this order; a single process is left alone:

  plain hosts   GOKU_HOSTS=host-a,host-b, with GOKU_HOST_INDEX (else looked up
                there by this host's name) and GOKU_PORT of the first, or 8476
  SLURM         the tasks of srun
  GKE           TPU_WORKER_HOSTNAMES and the like, set by GKE and JobSet
  TPU pod VMs   the machine's metadata
"""

import os
import re
import socket
from typing import NamedTuple

import jax

# The public way to JAX's detection joins at once, before a roll can be called.
from jax._src import clusters

from goku_jax.parallel import roll
from goku_jax.typing import UserError

DETECTED = (
  clusters.SlurmCluster,
  clusters.GkeTpuCluster,
  clusters.GceTpuCluster,
)
COUNTED_BY = {
  "deactivate": "GOKU_HOSTS",
  "slurm": "SLURM_NTASKS",
  "gketpu": "TPU_WORKER_HOSTNAMES and MEGASCALE_NUM_SLICES",
  "gcetpu": "the TPU's metadata",
}
# Compiling for minutes may keep a host from its heartbeat: it is not dead.
HEARTBEAT_SECONDS = 1200
# gRPC reads these, in small letters alone.
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
NO_PROXY, NO_WEB_PROXY = "no_grpc_proxy", "no_proxy"


class Cluster(NamedTuple):
  """What one process knows of all."""

  detection: str  # JAX's `cluster_detection_method`
  address: str  # host:port of process 0
  index: int
  hosts: list[str]  # of each process, "" where unknown


def initialize(deadline_seconds: float = 300.0):
  """Joins the processes of a pod; does nothing for one, or a second time.

  Every process calls it before anything that touches a device.

  Args:
    deadline_seconds: how long each process waits for the others to arrive.

  Raises:
    UserError: in every process, naming those that did not arrive; or the
      environment contradicts itself.
  """
  if jax.distributed.is_initialized():
    return
  cluster = find_cluster(deadline_seconds)
  if cluster is None:
    return
  detection, address, index, hosts = cluster
  names = [f"process {i} ({host or '?'})" for i, host in enumerate(hosts)]
  try:
    roll.call(address, index, names, deadline_seconds)
  except UserError as error:
    counted = f"{COUNTED_BY[detection]} counts {len(hosts)} processes"
    raise UserError(f"{error}; {counted}, met at {address}") from error
  _go_by_no_proxy(address.rpartition(":")[0])
  jax.distributed.initialize(
    address,
    len(hosts),
    index,
    cluster_detection_method=detection,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
  )


def find_cluster(deadline_seconds: float = 300.0) -> Cluster | None:
  """The processes that the environment speaks of; None if there is one.

  Args:
    deadline_seconds: on a TPU pod, for the first host's name to be known.

  Raises:
    UserError: a value is wrong, or an index outside.
  """
  if os.environ.get("GOKU_HOSTS"):
    return _listed()
  kind = next((kind for kind in DETECTED if kind.is_env_present()), None)
  try:
    return kind and _detected(kind, deadline_seconds)
  except (ValueError, RuntimeError, OSError) as error:
    raise UserError(
      f"cannot tell the processes by {COUNTED_BY[kind.name]}: {error}"
    ) from error


def _go_by_no_proxy(host):
  """gRPC would ask a web proxy for a host of the pod, and hang."""
  if any(os.environ.get(name) for name in PROXIES):
    others = os.environ.get(NO_PROXY) or os.environ.get(NO_WEB_PROXY)
    os.environ[NO_PROXY] = ",".join(filter(None, [others, host]))


def _listed():
  hosts = [host.strip() for host in os.environ["GOKU_HOSTS"].split(",")]
  if len(hosts) == 1:
    return None
  port = _integer("GOKU_PORT", 65536) or 8476
  index = _integer("GOKU_HOST_INDEX", len(hosts))
  if index is None:
    short = lambda name: name.lower().partition(".")[0]
    here = short(socket.gethostname())
    found = [i for i, host in enumerate(hosts) if short(host) == here]
    if len(found) != 1:
      raise UserError(
        f"GOKU_HOSTS={','.join(hosts)} names this host, {here}, {len(found)}"
        " times: set GOKU_HOST_INDEX to its place, counted from 0"
      )
    index = found[0]
  return Cluster("deactivate", f"{hosts[0]}:{port}", index, hosts)


def _integer(name, limit):
  value = os.environ.get(name)
  if value and not (value.isdecimal() and int(value) < limit):
    raise UserError(f"{name}={value} is no whole number from 0 to {limit - 1}")
  return int(value) if value else None


def _detected(kind, deadline_seconds):
  count, index = kind.get_process_count(), kind.get_process_id()
  if not 0 <= index < count:
    raise ValueError(f"this is process {index}, counted from 0, of {count}")
  if count == 1:
    return None
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  address = address or kind.get_coordinator_address(
    deadline_seconds, os.environ.get("JAX_COORDINATOR_PORT")
  )
  slurm = kind is clusters.SlurmCluster
  hosts = _slurm_hosts(count) if slurm else _tpu_hosts(kind, index, count)
  return Cluster(kind.name, address, index, hosts)


def _slurm_hosts(count):
  """The node of each task, where nodes hold equal blocks of them."""
  nodes = []
  listed = os.environ["SLURM_STEP_NODELIST"]  # such as a[001-003,007],b
  for prefix, ranges in re.findall(r"([^,\[]+)(?:\[([^\]]+)\])?", listed):
    nodes += [] if ranges else [prefix]
    for first, last in re.findall(r"(\d+)-?(\d*)", ranges):
      numbers = range(int(first), int(last or first) + 1)
      nodes += [f"{prefix}{number:0{len(first)}}" for number in numbers]
  if count % len(nodes):
    return [""] * count
  return [nodes[i * len(nodes) // count] for i in range(count)]


def _tpu_hosts(kind, index, count):
  """The hosts of this slice by name, those of others by number."""
  workers = kind._get_worker_list_in_slice()
  each = len(workers)
  hosts = [f"worker {i % each} of slice {i // each}" for i in range(count)]
  first = index // each * each
  return hosts[:first] + workers + hosts[first + each :]
