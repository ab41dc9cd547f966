"""Other ways to lay a step out on a slice, and the fastest of those that fit.

The ceiling of the MFU is known by formula, so all ways are ranked first, those
of each remat apart: what fits is the remat's doing more than the mesh's. The
best of each are compiled, which takes minutes, until enough of them fit.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax

from goku_jax import costs
from goku_jax.models.goku import make_goku
from goku_jax.parallel.mesh import AXES
from goku_jax.plan import plan, report, topology
from goku_jax.typing import UserError

FITS = 0.9  # of a device's memory: what a step may need at most
REMATS = ("none", "keep_attention", "full", "offload")
MICRO_BATCHES = (1, 2, 4)
TRIED = 4  # compiles of each remat at most
COLUMNS = ("hbm_share", "mfu_ceiling", "token_exchange_share")


class Way(NamedTuple):
  """Settings of a config."""

  fsdp: int
  sequence: int
  tensor: int
  ring: int
  remat: str
  micro_batches: int


def search(config, name: str, slices: int, count: int) -> dict:
  """Prints and returns the `count` best ways that fit, as plans.

  Args:
    config: of stage=flow, with a section `plan`.
    name: of the slice, as `topology.find_devices` takes it.
    slices: of them; each holds a replica of the state.
    count: how many.

  Raises:
    UserError: there is no such slice, or nothing that was tried fits it.
  """
  devices = topology.find_devices(name, slices)
  chip = costs.find_chip(devices[0].device_kind)
  if chip is None:
    raise UserError("--search needs the extra tpu, which says what fits")
  rank = functools.cache(lambda way: _rank(config, way, slices, name, chip))
  every = sorted(ways(config, len(devices) // slices, slices), key=rank)
  tried = [[w for w in every if w.remat == remat][:TRIED] for remat in REMATS]
  ranked = sorted(itertools.chain(*tried), key=rank)
  print(" ".join(f"{word:>14}" for word in (*Way._fields, *COLUMNS)))
  found = []
  for way in ranked:
    row = _try(settled(config, way, slices), name, devices)
    told = (
      row.get(key, "unknown" if row else "does not fit") for key in COLUMNS
    )
    print(" ".join(f"{_short(x):>14}" for x in (*way, *told)))
    if row.get("hbm_share", 1) <= FITS:
      found.append(way._asdict() | {key: row.get(key) for key in COLUMNS})
    if len(found) == count:
      break
  if not found:
    raise UserError(
      f"none of the {len(ranked)} best ways fits {name}: give more chips, or"
      " fewer data.num_packs"
    )
  return {"ways": len(every), "best": found}


def ways(config, chips: int, slices: int = 1) -> list[Way]:
  """Every way to lay the step out on the chips of each slice."""
  cfg, data = make_goku(**config.model).config, config.data
  found = []
  divisors = lambda n: [k for k in range(1, n + 1) if n % k == 0]
  for fsdp, tensor in itertools.product(divisors(chips), repeat=2):
    sequence = chips // (fsdp * tensor)
    if fsdp * tensor * sequence != chips or cfg.num_heads % tensor:
      continue
    heads = cfg.num_heads // tensor
    # The shortest ring: Ulysses exchanges less.
    ring = next(r for r in divisors(sequence) if heads % (sequence // r) == 0)
    for remat, parts in itertools.product(REMATS, MICRO_BATCHES):
      even = data.num_packs % (slices * fsdp * parts) == 0
      if even and data.pack.tokens % sequence == 0:
        found.append(Way(fsdp, sequence, tensor, ring, remat, parts))
  return found


def settled(config, way: Way, slices: int):
  """The config with the settings of a way."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.mesh.update(
      replica=slices, fsdp=way.fsdp, sequence=way.sequence, tensor=way.tensor
    )
    config.attention.ring = way.ring
    config.model.remat = way.remat
    config.micro_batches = way.micro_batches
  return config


def _rank(config, way, slices, name, chip):
  """The best first; among equals the least exchange, and the fewest parts."""
  mesh = jax.sharding.AbstractMesh(
    (slices, way.fsdp, way.sequence, way.tensor), AXES
  )
  config = settled(config, way, slices)
  model = make_goku(**config.model)
  schedule = plan.count_bundles(config, model.config, name)
  found = report.compute(config, model, mesh, chip, schedule)
  ceiling = found.get("mfu_ceiling", 0)
  return -round(ceiling, 3), way.ring, way.sequence * way.tensor, way


def _try(config, name, devices) -> dict:
  """The plan of a way; empty where it does not fit."""
  try:
    return plan.compile_plan(config, name, devices, plan.JOBS["train"])[0]
  except plan.OutOfMemoryError:
    return {}


def _short(x) -> str:
  return f"{x:.3g}" if isinstance(x, float) and math.isfinite(x) else str(x)
