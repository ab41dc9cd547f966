"""A plan: a step compiled, and what is read from it."""

import math
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from goku_jax import costs
from goku_jax.plan import bundles, program, report, step, topology, vae_step
from goku_jax.train import memory
from goku_jax.train.step import TrainState
from goku_jax.typing import UserError

SHOWN = 24  # collectives that are printed
DEFAULT_MESH = dict(replica=1, fsdp=-1, sequence=1, tensor=1)
# As libtpu says it: when all is laid out, or already before.
OUT_OF_MEMORY = (
  r"Used ([\d.]+\w) of ([\d.]+\w) hbm"
  r"|temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)"
)


class OutOfMemoryError(UserError):
  """The program needs more memory than a device has."""


class Job(NamedTuple):
  """What is planned."""

  lower: Callable  # (config, devices) -> step.Lowered
  # (config, model, mesh, chip, bundles) -> figures; the autoencoder has no
  # formula
  compute: Callable | None = None


JOBS = {
  "train": Job(step.lower_step, report.compute),
  "sample": Job(step.lower_sample, report.compute_sampling),
  "vae": Job(vae_step.lower_vae),
}


def make_plan(config, name: str, slices: int = 1, job: str = "train") -> dict:
  """Compiles what a job runs for a slice; prints and returns the plan.

  Args:
    config: of stage=flow, with a section `plan`; of stage=vae for that job.
    name: of the slice, as `topology.find_devices` takes it.
    slices: of them.
    job: of JOBS.

  Raises:
    UserError: there is no such slice or job, the mesh does not fit it, or the
      program does not fit its memory.
  """
  if job not in JOBS:
    raise UserError(f"--job={job} is not one of {', '.join(JOBS)}")
  devices = topology.find_devices(name, slices)
  config = choose(config, name, slices)
  if job == "sample":
    config = step.for_sampling(config, devices)
  found, rows = compile_plan(config, name, devices, JOBS[job])
  _print(rows)
  return found


def choose(config, name, slices):
  """The config on the mesh that it has for a slice, if it has one.

  A mesh that was set, so that it is not the default, stays as it is.
  """
  config = config.copy_and_resolve_references()
  split = config.get("topologies", {}).get(name)
  if split and config.mesh.to_dict() == DEFAULT_MESH:
    with config.unlocked():
      config.mesh.update(split.mesh)
      config.mesh.replica *= slices
      config.model.remat = split.remat
    print("mesh and remat of config.topologies; set config.mesh for others")
  return config


def compile_plan(config, name, devices, job: Job):
  """The plan of a config on its mesh, and its collectives, alike together."""
  lowered = job.lower(config, devices)
  started = time.perf_counter()
  compiled = _compile(lowered, config)
  seconds = time.perf_counter() - started
  found = {
    "device": devices[0].device_kind,
    "devices": len(devices),
    "mesh": {k: int(v) for k, v in lowered.mesh.shape.items()},
    "remat": lowered.model.config.remat,
    "parameters": sum(
      math.prod(x.shape) for x in jax.tree.leaves(_params(lowered.state))
    ),
    "compile_seconds": seconds,
  }
  chip = costs.find_chip(devices[0].device_kind)
  text = compiled.as_text()
  exchanged = program.collectives(text)
  if chip is None:
    print(
      "libtpu is not installed: compiled for pretend CPU devices, whose memory,"
      " collectives and speed are not a TPU's; install the extra tpu"
    )
    return found | {"collectives": _kinds(exchanged)}, []
  state_bytes = memory.bytes_a_device(lowered.state)
  held = report.tell_memory(program.memory(compiled), state_bytes, chip)
  found |= held | {
    "hbm_seconds": report.hbm_seconds(program.shapes(text), state_bytes, chip)
  }
  rows = report.tell_collectives(exchanged, chip)
  found |= report.traffic(rows) | {"collectives": _kinds(exchanged)}
  if job.compute:
    cfg = lowered.model.config
    schedule = count_bundles(config, cfg, name)
    found["bundles"] = schedule
    found |= job.compute(config, lowered.model, lowered.mesh, chip, schedule)
    if "compute_seconds" in found:
      found["token_exchange_share"] = (
        found["token_exchange_seconds"] / found["compute_seconds"]
      )
  return found, rows


def count_bundles(config, cfg, name):
  """The schedule of the config's attention on a chip of a slice."""
  kernel, width = config.attention, cfg.width // cfg.num_heads
  return bundles.count(_smallest(name), width, kernel.block, kernel.key_block)


def _params(state):
  return state.params if isinstance(state, TrainState) else state


def _compile(lowered, config):
  try:
    return lowered.lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    used = re.search(OUT_OF_MEMORY, str(error))
    if not used:
      raise
    needed, there = (used[i] or used[i + 2] for i in (1, 2))
    raise OutOfMemoryError(
      f"the step needs {needed} of a device's {there}: {_largest(error)};"
      f" {memory.advice(config, lowered.mesh)}"
    ) from error


def _largest(error) -> str:
  """What holds most, as the compiler lists it."""
  sizes = re.findall(
    r"Size: ([\d.]+[GMK])\s+.*?Shape: (\S+?)[\{\s]", str(error), re.S
  )
  told = ", ".join(f"{shape} {size}" for size, shape in sizes[:3])
  return f"the largest arrays are {told}" if told else "it names no arrays"


def _smallest(name):
  """The smallest slice of a generation: a kernel is of one chip."""
  generation = name.partition(":")[0]
  return generation + (":2x2" if generation in ("v5e", "v6e") else ":2x2x1")


def _kinds(exchanged) -> dict:
  """Collectives of one layer, and those outside of layers."""
  return {
    "a_layer": count_kinds([x for x in exchanged if x.loops]),
    "a_step_besides": count_kinds([x for x in exchanged if not x.loops]),
  }


def count_kinds(exchanged) -> dict[str, dict[str, int]]:
  """Number and bytes of the arrays of each kind."""
  found = {}
  for one in exchanged:
    row = found.setdefault(one.kind, {"count": 0, "bytes": 0})
    row["count"] += 1
    row["bytes"] += one.bytes
  return found


def _print(rows):
  print(
    f"{'exchanged':<20}{'array':<28}{'group':>6}{'times':>7}{'MiB':>9}  from"
  )
  for row in rows[:SHOWN]:
    times = row["count"] * row["times"]
    print(
      f"{row['kind']:<20}{row['array']:<28}{row['group']:>6}{times:>7}"
      f"{row['bytes'] / 2**20:>9.2f}  {row['source'][-60:]}"
    )
  if len(rows) > SHOWN:
    print(f"and {len(rows) - SHOWN} more kinds, smaller")
