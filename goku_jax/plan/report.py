"""What a compiled step costs at least, on chips that are not there.

Compute is the larger part of a long clip's step. A device's share of matrix
products takes FLOPs over the chip's peak, those of what is computed again
included; attention takes the bundles that the compiler scheduled for a pair of
blocks, times the pairs, over the clock. No wait is in either, so their sum is a
floor of the step's time, and the model FLOPs over it a ceiling of its MFU.

Traffic, of an array of V bytes that a ring of n devices holds in parts (the
scaling book, chapter 3), W bytes/s through a device both ways: V / W for
all-gather and reduce-scatter, twice for all-reduce, V / 4W for all-to-all. A
group that spans two axes of the torus is faster than that.
"""

import math
from typing import NamedTuple

from goku_jax import costs
from goku_jax.models.transformer import REMAT
from goku_jax.parallel import rules
from goku_jax.parallel.batch import count_ranks
from goku_jax.plan import program
from goku_jax.plan.step import BRANCHES

EXCHANGES = ("all-to-all", "collective-permute")


class Work(NamedTuple):
  """What a batch asks of the model, by formula (`costs`)."""

  model: float  # FLOPs of a training step, all devices
  attention: float  # those of self-attention among them
  blocks: int  # pairs of blocks of a pack


def work_of(config, sizes) -> Work:
  """FLOPs of packs that each hold the segment `config.plan` names."""
  data, plan, blocks = config.data, config.plan, config.attention
  texts = (plan.text,) if sizes["text_width"] else ()
  model = costs.training_flops((plan.segment,), texts, **sizes)
  attention = 12 * plan.segment**2 * sizes["width"] * sizes["depth"]
  pairs = costs.attention_blocks(
    (plan.segment,), block_q=blocks.block, block_k=blocks.key_block
  )
  return Work(data.num_packs * model, data.num_packs * attention, pairs)


def compute(config, model, mesh, chip, bundles) -> dict:
  """Seconds of a training step's products and attention; ceilings of MFU.

  Args:
    config: of the step.
    model: the flow model of it.
    mesh: of its devices.
    chip: `costs.Chip`.
    bundles: `bundles.count` of the kernels, or None.
  """
  cfg = model.config
  work = work_of(config, costs.sizes_of(cfg))
  again = 0 if cfg.remat == "none" else 1
  found = _linear(work, (3 + again) / 3, mesh, chip)
  if not bundles or not chip.clock:
    return found
  kept = "attention" in REMAT.get(cfg.remat, cfg.remat) or not again
  forwards = 1 if kept else 2
  cycles = forwards * bundles["forward"] + bundles["dq"] + bundles["dkv"]
  return found | _ceilings(config, cfg, work, found, cycles, mesh, chip)


def compute_sampling(config, model, mesh, chip, bundles) -> dict:
  """The same of all steps from noise to latents, forwards alone."""
  passes = BRANCHES * config.sample.num_steps
  work = Work(
    *(passes * x for x in work_of(config, costs.sizes_of(model.config)))
  )
  work = work._replace(model=work.model / 3, attention=work.attention / 3)
  found = _linear(work, 1, mesh, chip)
  if not bundles or not chip.clock:
    return found
  return found | _ceilings(
    config, model.config, work, found, bundles["forward"], mesh, chip
  )


def _linear(work, times, mesh, chip):
  """What is known without the kernels' schedule."""
  linear = (work.model - work.attention) * times
  return {
    "model_flops": work.model,
    "attention_share": work.attention / work.model,
    "linear_seconds": linear / mesh.size / chip.flops,
  }


def _ceilings(config, cfg, work, found, cycles, mesh, chip):
  """What follows of the cycles that a pair of blocks takes."""
  ring = config.attention.ring
  ulysses = mesh.shape[rules.TOKENS] // ring
  heads = math.ceil(cfg.num_heads / mesh.shape[rules.HEADS] / ulysses)
  packs = config.data.num_packs / count_ranks(mesh)
  pairs = packs * heads * cfg.depth * work.blocks / ring
  seconds = pairs * cycles / (chip.cores * chip.clock)
  floor = found["linear_seconds"] + seconds
  peak = mesh.size * chip.flops
  return {
    "attention_seconds": seconds,
    "compute_seconds": floor,
    "attention_ceiling": work.attention / peak / seconds,
    "mfu_ceiling": work.model / peak / floor,
  }


def hbm_seconds(arrays, state_bytes: int, chip) -> float:
  """Seconds in which memory passes what a step must write and read, at least.

  Each array that is made is written and read once, and so is the state:
  whatever reads an array twice is not known to, nor what lies in a core's own
  memory in between.
  """
  if not chip.hbm_speed:
    return math.nan
  made = sum(
    program.num_bytes(x.dtype, x.shape) * x.times
    for x in arrays
    if x.op != "dynamic-update-slice"  # which writes a part
  )
  return 2 * (made + state_bytes) / chip.hbm_speed


def traffic_seconds(collective, chip) -> float:
  """Seconds of all runs of a collective in a step, over one ring."""
  if not chip.link_speed:
    return math.nan
  both_ways = 2 * chip.link_speed
  n, size = collective.group, collective.bytes
  whole = {
    "all-gather": size,
    "all-reduce": 2 * size,
    "reduce-scatter": size * n,
    "all-to-all": size * n / 4,
    "collective-permute": size,
  }[collective.kind]
  return collective.times * whole / both_ways


def traffic(rows) -> dict:
  """Seconds of all collectives, and of those that exchange tokens."""
  total = sum(row["seconds"] for row in rows)
  tokens = sum(row["seconds"] for row in rows if row["kind"] in EXCHANGES)
  return {"interconnect_seconds": total, "token_exchange_seconds": tokens}


def tell_collectives(found, chip) -> list[dict]:
  """Alike collectives of the scan over layers together, the dearest first."""
  rows = {}
  for one in found:
    name = one.source.rpartition("/while/body/closed_call/")[2]
    key = one.kind, one.dtype, one.shape, one.group, one.loops > 0, name
    row = rows.setdefault(
      key, {"count": 0, "seconds": 0.0, "times": one.times, "bytes": one.bytes}
    )
    row["count"] += 1
    row["seconds"] += traffic_seconds(one, chip)
  named = [
    dict(
      kind=kind,
      array=f"{dtype}[{','.join(map(str, shape))}]",
      group=group,
      in_layers=in_layers,
      source=name,
      **row,
    )
    for (kind, dtype, shape, group, in_layers, name), row in rows.items()
  ]
  return sorted(
    named, key=lambda row: -row["count"] * row["times"] * row["bytes"]
  )


def tell_memory(memory: program.Memory, state_bytes: int, chip) -> dict:
  """GiB of a device by kind, and the share of its HBM."""
  parts = {
    "state": state_bytes,
    "batch": max(memory.arguments - state_bytes, 0),
    "activations_and_temporaries": memory.temporary,
    "program": memory.code,
    "live": memory.live,
    "compilers_peak": memory.peak or 0,
  }
  told = {f"{name}_gib": size / costs.GIB for name, size in parts.items()}
  if memory.host:
    told["host_gib"] = memory.host / costs.GIB
  most = max(memory.live, memory.peak or 0)  # either count may be the larger
  return {"hbm_share": most / chip.hbm, "hbm_gib": chip.hbm / costs.GIB} | told
