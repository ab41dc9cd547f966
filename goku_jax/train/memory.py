"""What holds a device's memory, and what would make it less."""

import contextlib
import math
import re

import jax

from goku_jax import costs
from goku_jax.typing import UserError


def bytes_a_device(tree) -> int:
  """Of arrays, or of shapes with shardings, on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


@contextlib.contextmanager
def explained(config, state, batch):
  """Tells in one line what held the memory, where a step runs out of it.

  Raises:
    UserError: compiling or running the step found too little memory.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    held = dict(
      parameters=state.params,
      averages=state.ema,
      moments=state.opt_state,
      batch=batch,
    )
    told = ", ".join(
      f"{name} {bytes_a_device(tree) / costs.GIB:.3g}"
      for name, tree in held.items()
    )
    raise UserError(
      f"out of memory: a device holds, in GiB, {told}, and activations and"
      f" gradients{_wanted(error)} besides; {advice(config)}"
    ) from error


def _wanted(error):
  """The number of bytes that were not there, if the error says it."""
  wanted = re.search(r"allocat\w+ (?:a buffer of )?(\d+) ?b", str(error), re.I)
  return (
    f" (the last asked for {int(wanted[1]) / costs.GIB:.3g})" if wanted else ""
  )


def advice(config) -> str:
  """The two cheapest settings of a config that take less memory."""
  ways, model = [], config.model
  remat = model.get("remat") if config.stage == "flow" else None
  if remat in ("none", "keep_attention"):
    ways.append("--config.model.remat=full")
  elif remat == "full":
    ways.append("--config.model.remat=offload")
  mesh, rows = config.mesh, config.data.get("num_packs", 0)
  ranks = abs(mesh.replica * mesh.fsdp)  # -1: whatever is left
  if rows % (2 * ranks * config.micro_batches) == 0:
    ways.append(f"--config.micro_batches={2 * config.micro_batches}")
  ways.append(f"--config.mesh.sequence={2 * mesh.sequence}")
  return "set " + " or ".join(ways[:2])
