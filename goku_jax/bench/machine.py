"""What figures are of, the memory that was taken for them, and a stopwatch."""

import contextlib
import math
import os
import pathlib
import platform
import time

import jax

from goku_jax.typing import UserError

ROUNDS = 5


def describe(dtype: str) -> dict:
  """The device, the cores and the versions that figures are of."""
  return {
    "dtype": dtype,
    "device": jax.devices()[0].device_kind,
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
    "jax": jax.__version__,
  }


def forget_peak():
  """Lets the process's peak count from now on; of an accelerator none can."""
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> tuple[int, str]:
  """Bytes at the peak, and of what: "device", or "process" on CPUs.

  Raises:
    UserError: neither is told here.
  """
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return stats["peak_bytes_in_use"], "device"
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024, "process"
  raise UserError("this system does not tell the peak memory of a process")


def fastest(fn, *args):
  """What a function gives, and the seconds of its fastest call of ROUNDS."""
  out, best = jax.block_until_ready(fn(*args)), math.inf  # compiles
  for _ in range(ROUNDS):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    best = min(best, time.perf_counter() - start)
  return out, best
