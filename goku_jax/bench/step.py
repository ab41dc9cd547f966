"""A training step of a flow config: its speed, its compile time, its memory.

Two processes, one after the other, with one compilation cache that nobody else
has: the first finds it empty and ends after its first step, the second finds
what the first compiled and goes on to the timed steps (`step_process.py`).
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from goku_jax import job
from goku_jax.typing import UserError


def measure(config, steps: int) -> dict:
  """Figures of a step, and of the way to the first one.

  `cold` and `warm` have the seconds of tracing and compiling the step, and of
  all from the start of the process to the end of its first step; `from_cache`
  says whether the step came from the cache. Of several hosts only the first
  writes one: the others may be cold twice.

  Args:
    config: of stage=flow, with its data.
    steps: how many are timed without data, and as many with.
  """
  # A folder of mkdtemp is open to its owner alone: who can write the cache can
  # run code here.
  with tempfile.TemporaryDirectory(prefix="goku-bench-") as folder:
    job.save_config(folder, config)
    cold, _ = _run(folder, 0)
    warm, found = _run(folder, steps)
  return {"steps": steps, **found, "cold": cold, "warm": warm}


def _run(folder, steps):
  """Figures of one process: of its start, and of its steps."""
  path = pathlib.Path(folder, "found.json")
  command = [sys.executable, "-m", "goku_jax.bench.step_process"]
  command += [f"--workdir={folder}", f"--steps={steps}", f"--json={path}"]
  cache = {
    "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  started = time.time()
  status = subprocess.run(
    command, env=os.environ | cache, stdout=subprocess.DEVNULL, check=False
  ).returncode
  if status > 0:  # it has told why
    sys.exit(status)
  if status < 0:
    name = signal.Signals(-status).name
    raise UserError(f"the step's process ended by {name}: memory may be short")
  found = json.loads(path.read_text())
  start = found.pop("start")
  start["first_step_seconds"] = start.pop("first_step_at") - started
  return start, found
