"""What holds a device's memory, and what would make it less."""

import contextlib
import math
import re

import jax

from goku_jax import costs
from goku_jax.parallel import rules
from goku_jax.parallel.batch import count_ranks
from goku_jax.typing import UserError


def bytes_a_device(tree) -> int:
  """Of arrays, or of shapes with shardings, on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


COUNTS = ("num_packs", "num_clips", "num_images")  # that ranks share


@contextlib.contextmanager
def explained(config, mesh, state, batch):
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
      parameters=(state.params, state.base),
      averages=(state.ema, state.more_ema),
      moments=state.opt_state,
      critic=state.critic,
      batch=batch,
    )
    told = ", ".join(
      f"{name} {bytes_a_device(tree) / costs.GIB:.3g}"
      for name, tree in held.items()
      if tree is not None
    )
    raise UserError(
      f"out of memory: a device holds, in GiB, {told}, and activations and"
      f" gradients{_wanted(error)} besides; {advice(config, mesh)}"
    ) from error


def _wanted(error):
  """The number of bytes that were not there, if the error says it."""
  wanted = re.search(r"allocat\w+ (?:a buffer of )?(\d+) ?b", str(error), re.I)
  return (
    f" (the last asked for {int(wanted[1]) / costs.GIB:.3g})" if wanted else ""
  )


def advice(config, mesh) -> str:
  """The two cheapest settings of a config on a mesh that take less memory."""
  ways, model = [], config.model
  remat = model.get("remat") if config.stage == "flow" else None
  if remat in ("none", "keep_attention"):
    ways.append("--config.model.remat=full")
  elif remat == "full":
    ways.append("--config.model.remat=offload")
  counts = [config.data[k] for k in COUNTS if k in config.data]
  parts = 2 * config.micro_batches
  ranks = count_ranks(mesh)
  if not any(count % (parts * ranks) for count in counts):
    ways.append(f"--config.micro_batches={parts}")
  fsdp, sequence = (mesh.shape[axis] for axis in rules.STATE)
  if fsdp % 2 == 0:
    less, more = fsdp // 2, 2 * sequence
    ways.append(f"--config.mesh.fsdp={less} --config.mesh.sequence={more}")
  return "set " + " or ".join(ways[:2] or ["fewer data.num_packs"])
