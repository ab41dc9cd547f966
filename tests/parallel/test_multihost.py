"""Processes that find each other by their environment, real ones and alone."""

import contextlib
import os
import socket
import subprocess
import sys

import jax
import pytest

from goku_jax.parallel import multihost
from goku_jax.typing import UserError

JOIN = """
import sys
from goku_jax.parallel import multihost
from goku_jax.typing import UserError
try:
  multihost.initialize(float(sys.argv[1]))
except UserError as error:
  sys.exit(f"error: {error}")

import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
multihost.initialize()  # a second time does nothing
mesh = jax.make_mesh((jax.device_count(),), ("all",))
mine = np.arange(4.0) + 4 * jax.process_index()
x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("all")), mine)
total = jax.shard_map(
  lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P()
)
told = jax.device_count(), jax.local_device_count(), float(jax.jit(total)(x)[0])
print(*told)  # after what gloo says of itself on the same stream
"""
SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "localhost",
  "SLURM_NTASKS": "2",
  "SLURM_LOCALID": "0",
}
# As on a TPU host of GKE; what is empty is not asked of the metadata server.
GKE = {
  "JAX_FORCE_TPU_INIT": "1",
  "TPU_WORKER_HOSTNAMES": "localhost,localhost",
  "MEGASCALE_COORDINATOR_ADDRESS": "",
  "MEGASCALE_NUM_SLICES": "",
  "MEGASCALE_SLICE_ID": "",
}


@pytest.fixture
def alone(monkeypatch):
  """Nothing in the environment speaks of several processes."""
  for name in os.environ:
    if name.startswith(("GOKU_HOST", "GOKU_PORT", "JAX_COORD", "SLURM_")):
      monkeypatch.delenv(name)
  return monkeypatch


def join(*environments, deadline_seconds=60.0):
  """Status, output and errors of processes started at the same time."""
  flags = "--xla_force_host_platform_device_count=4"
  flags += " --xla_backend_optimization_level=0"
  command = [sys.executable, "-c", JOIN, str(deadline_seconds)]
  with contextlib.ExitStack() as stack:
    processes = []
    for environment in environments:
      environment = os.environ | {"XLA_FLAGS": flags} | environment
      process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      stack.callback(process.kill)
      processes.append(process)
    outputs = [process.communicate(timeout=120) for process in processes]
  return [
    (process.returncode, *output)
    for process, output in zip(processes, outputs, strict=True)
  ]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
  "kind",
  [
    "list",
    pytest.param("slurm", marks=pytest.mark.slow),
    pytest.param("gke", marks=pytest.mark.slow),
  ],
)
def test_two_processes_sum_over_the_devices_of_both(kind, port):
  environment, index = {
    "list": ({"GOKU_HOSTS": "localhost,localhost"}, "GOKU_HOST_INDEX"),
    "slurm": (SLURM, "SLURM_PROCID"),
    "gke": (GKE, "TPU_WORKER_ID"),
  }[kind]
  environment |= {"GOKU_PORT": str(port), "JAX_COORDINATOR_PORT": str(port)}
  environment |= {"http_proxy": "http://localhost:9"}  # where nobody answers
  for status, out, err in join(
    environment | {index: "0"}, environment | {index: "1"}
  ):
    assert status == 0, err
    assert out.splitlines()[-1] == "8 4 28.0"


@pytest.mark.usefixtures("alone")
def test_a_host_that_never_arrives_is_named_in_one_line(port):
  hosts = {"GOKU_HOSTS": "localhost,host-b", "GOKU_PORT": str(port)}
  ((status, out, err),) = join(
    hosts | {"GOKU_HOST_INDEX": "0"}, deadline_seconds=0.5
  )
  assert (status, out) == (1, "")
  assert err == (
    "error: process 1 (host-b) did not arrive within 0.5 s; GOKU_HOSTS counts 2"
    f" processes, met at localhost:{port}\n"
  )


@pytest.mark.usefixtures("alone")
def test_slices_of_a_pod_that_is_gone_are_named(port):
  stale = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "0"}
  environment = GKE | stale | {"JAX_COORDINATOR_PORT": str(port)}
  ((status, _, err),) = join(
    environment | {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
    deadline_seconds=0.5,
  )
  assert status == 1
  assert "process 1 (worker 0 of slice 1) did not arrive within 0.5 s" in err
  assert "MEGASCALE_NUM_SLICES counts 2 processes" in err
  assert err.count("\n") == 1


def test_a_process_alone_is_left_alone(alone):
  multihost.initialize()
  alone.setenv("GOKU_HOSTS", "host-a")
  multihost.initialize()
  alone.delenv("GOKU_HOSTS")
  for name, value in (SLURM | {"SLURM_NTASKS": "1"}).items():
    alone.setenv(name, value)
  alone.setenv("SLURM_PROCID", "0")
  multihost.initialize()
  assert not jax.distributed.is_initialized()


def test_a_host_finds_itself_in_the_list(alone):
  alone.setenv("GOKU_HOSTS", f"host-a, {socket.gethostname()}.cluster")
  cluster = multihost.find_cluster()
  assert (cluster.address, cluster.index) == ("host-a:8476", 1)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"GOKU_HOST_INDEX": "2"}, "GOKU_HOST_INDEX=2 is no whole number from 0"),
    ({"GOKU_HOST_INDEX": "-1"}, "GOKU_HOST_INDEX=-1 is no whole number from 0"),
    (
      {"GOKU_PORT": "http"},
      "GOKU_PORT=http is no whole number",
    ),
    (
      {},
      "GOKU_HOSTS=host-a,host-b names this host, .*, 0 times",
    ),
  ],
)
def test_a_wrong_value_is_refused(values, message, alone):
  for name, value in ({"GOKU_HOSTS": "host-a,host-b"} | values).items():
    alone.setenv(name, value)
  with pytest.raises(UserError, match=message):
    multihost.find_cluster()


@pytest.mark.parametrize(
  ("nodes", "tasks", "hosts"),
  [
    ("a", 2, ["a", "a"]),
    ("gpu-1,gpu-b", 2, ["gpu-1", "gpu-b"]),
    ("a[08-10]", 6, ["a08", "a08", "a09", "a09", "a10", "a10"]),
    ("a[1,3-4],b", 4, ["a1", "a3", "a4", "b"]),
    ("a[1-2]", 3, ["", "", ""]),
  ],
)
def test_tasks_of_slurm_lie_on_their_nodes(nodes, tasks, hosts, alone):
  more = {"SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": str(tasks)}
  for name, value in (SLURM | more | {"SLURM_PROCID": "1"}).items():
    alone.setenv(name, value)
  cluster = multihost.find_cluster()
  assert (cluster.detection, cluster.index) == ("slurm", 1)
  assert cluster.hosts == hosts


def test_an_index_of_slurm_outside_is_refused(alone):
  for name, value in (SLURM | {"SLURM_PROCID": "2"}).items():
    alone.setenv(name, value)
  with pytest.raises(UserError, match="this is process 2, counted from 0"):
    multihost.find_cluster()
