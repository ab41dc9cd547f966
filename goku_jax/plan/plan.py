"""A plan: a step compiled, and what is read from it."""

import math
import re
import time

import jax

from goku_jax import costs
from goku_jax.plan import bundles, program, report, step, topology
from goku_jax.train import memory
from goku_jax.typing import UserError

SHOWN = 24  # collectives that are printed


def make_plan(config, name: str, slices: int = 1) -> dict:
  """Compiles the step of a config for a slice; prints and returns the plan.

  Args:
    config: of stage=flow, with a section `plan`.
    name: of the slice, as `topology.find_devices` takes it.
    slices: of them.

  Raises:
    UserError: there is no such slice, the mesh does not fit it, or the step
      does not fit its memory.
  """
  devices = topology.find_devices(name, slices)
  config = config.copy_and_resolve_references()
  chosen = name in config.get("topologies", {})
  with config.unlocked():
    if chosen:
      split = config.topologies[name]
      config.mesh.update(split.mesh)
      config.model.remat = split.remat
      if slices > 1:
        config.mesh.replica = slices * split.mesh.replica
  lowered = step.lower_step(config, devices)
  started = time.perf_counter()
  compiled = _compile(lowered.lowered, config)
  seconds = time.perf_counter() - started
  cfg = lowered.model.config
  found = {
    "device": devices[0].device_kind,
    "devices": len(devices),
    "mesh": {k: int(v) for k, v in lowered.mesh.shape.items()},
    "remat": cfg.remat,
    "parameters": sum(
      math.prod(x.shape) for x in jax.tree.leaves(lowered.state.params)
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
    return found | {"collectives": _kinds(exchanged)}
  held = report.tell_memory(
    program.memory(compiled), memory.bytes_a_device(lowered.state), chip
  )
  kernel = config.attention
  schedule = bundles.count(
    _smallest(name), cfg.width // cfg.num_heads, kernel.block, kernel.key_block
  )
  speed = report.compute(config, lowered.model, lowered.mesh, chip, schedule)
  rows = report.tell_collectives(exchanged, chip)
  total = sum(row["seconds"] for row in rows)
  tokens = sum(
    row["seconds"] for row in rows if row["kind"] in report.EXCHANGES
  )
  _print(rows)
  floor = speed.get("compute_seconds")
  return (
    found
    | held
    | speed
    | {
      "bundles": schedule,
      "interconnect_seconds": total,
      "token_exchange_seconds": tokens,
      "token_exchange_share": floor and tokens / floor,
      "collectives": _kinds(exchanged),
    }
  )


def _compile(lowered, config):
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
    if not used:
      raise
    raise UserError(
      f"the step needs {used[1]} of a device's {used[2]}: {_largest(error)};"
      f" {memory.advice(config)}"
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
  """Number and bytes of each kind in one layer, and outside of layers."""
  found = {}
  for where, picked in (
    ("a_layer", [x for x in exchanged if x.loops]),
    ("a_step_besides", [x for x in exchanged if not x.loops]),
  ):
    for one in picked:
      row = found.setdefault(where, {}).setdefault(
        one.kind, {"count": 0, "bytes": 0}
      )
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
