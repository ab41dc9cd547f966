"""What of the first hour needs a model: attention's kernels, and some steps.

Letters: B packs, L tokens.
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import costs
from goku_jax.bench import made_up, pod_devices
from goku_jax.bench.pod_devices import Check
from goku_jax.models import attention, kernels
from goku_jax.models.goku import make_goku
from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.plan import report, step
from goku_jax.typing import UserError

TOLERANCE = 0.02  # of bfloat16, relative to an array's norm
STEPS = 20
HEADS = 2  # of what kernels are checked on
SEGMENTS = 4  # of a pack of theirs, at most


def check_kernels(config) -> list[Check]:
  """Each kernel that runs here against the reference, on three packs.

  Heads are as wide, and blocks as large, as the config has them.
  """
  cfg, blocks = make_goku(**config.model).config, config.attention
  sizes = dict(block=blocks.block, key_block=blocks.key_block)
  found = []
  for name in kernels.NAMES:
    try:
      attend = kernels.choose(name, **sizes, segments=SEGMENTS)
    except UserError:
      continue  # it is of another platform
    if name != "auto" and attend is not attention.attend:
      for case, ids_L in _packs(2 * max(sizes.values())).items():
        width = cfg.width // cfg.num_heads
        found.append(check_kernel(f"{name}, {case}", attend, ids_L, width))
  where = jax.default_backend()
  none = Check("attention", True, f"{where} runs the reference alone")
  return found or [none]


def _packs(length):
  """Segments by their shares of the tokens; the rest is padding."""
  shares = dict(packed=(0.1, 0.39, 0.02, 0.49), padded=(0.6,), whole=(1,))
  found = {}
  for name, parts in shares.items():
    ends = np.round(np.cumsum(parts) * length).astype(int)
    ids_L = 1 + np.searchsorted(ends, np.arange(length), side="right")
    found[name] = np.where(ids_L > len(parts), 0, ids_L)
  return found


def check_kernel(name: str, attend, ids_L, width: int) -> Check:
  """Values and gradients of a kernel beside the reference's, on every host.

  Args:
    name: of the line.
    attend: as `attention.attend`.
    ids_L: segments of a pack.
    width: of heads.
  """
  ids_BL = jnp.asarray(ids_L, jnp.int32)[None]
  rngs = jax.random.split(jax.random.key(0), 3)
  shape = (1, len(ids_L), HEADS, width)
  qkv = [jax.random.normal(rng, shape, jnp.bfloat16) for rng in rngs]

  def results(attend):
    def loss(q, k, v):
      out = attend(q, k, v, ids_BL, ids_BL)[0]
      return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return [np.asarray(x, np.float32) for x in (out, *grads)]

  ours, reference = results(attend), results(attention.attend)
  errors = [
    float(np.linalg.norm(a - b) / np.linalg.norm(b))
    for a, b in zip(ours, reference, strict=True)
  ]
  # max() may pass over what is not a number.
  worst = float(np.max(errors))
  return judge_kernel(name, *pod_devices.gather([(worst,)]))


def judge_kernel(name: str, table, who: list[str]) -> Check:
  """A line by each host's largest error."""
  errors = table[:, 0]
  wrong = ~(errors < TOLERANCE)
  told = [f"{np.max(errors):.2g} apart at most, {TOLERANCE} may be"]
  told += [f"{who[i]} is {errors[i]:.2g} off" for i in np.flatnonzero(wrong)]
  return Check(f"attention {name}", not wrong.any(), "; ".join(told))


def check_steps(config, count: int = STEPS) -> list[Check]:
  """Steps of the config on made-up packs: whether finite, and how fast.

  Raises:
    UserError: as `train` would.
  """
  lowered = step.lower_step(config, jax.devices())
  compiled = lowered.lowered.compile()
  with meshes.use(lowered.mesh):
    rng = jax.random.key(config.seed)
    placed = jax.tree.map(lambda x: x.sharding, lowered.state)
    state = jax.jit(lowered.init, out_shardings=placed)(rng)
    rng = batches.replicate(lowered.mesh, rng)
    batch = made_up.make_batch(
      config, lowered.model, lowered.mesh, _grid(config), 1
    )
    batch = batches.place(lowered.mesh, batch)
    losses, seconds = [], []
    for _ in range(count):
      start = time.perf_counter()
      state, metrics = compiled(state, batch, rng)
      losses.append(float(metrics["loss"]))
      seconds.append(time.perf_counter() - start)
  return judge_steps(losses, min(seconds), config, lowered)


def judge_steps(losses, seconds: float, config, lowered) -> list[Check]:
  """What losses and the fastest step say, the plan's floor beside it."""
  filled = config.copy_and_resolve_references()
  with filled.unlocked():  # not every config plans; and it would, other packs
    filled.plan = dict(segment=math.prod(_grid(config)), text=1)
  chip = costs.find_chip(jax.devices()[0].device_kind)
  told = f"{seconds:.3g} s"
  if chip:
    planned = report.compute(filled, lowered.model, lowered.mesh, chip, None)
    peak = lowered.mesh.size * chip.flops
    share = costs.mfu(planned["model_flops"], seconds, peak)
    told += f", {share:.1%} of the peak; by plan its products alone take"
    told += f" {planned['linear_seconds']:.3g} s"
  else:
    told += "; this chip's peak is not known, so there is no plan"
  return [
    Check(
      f"{len(losses)} steps",
      bool(np.isfinite(losses).all()),
      f"loss {losses[0]:.4g} to {losses[-1]:.4g}",
    ),
    Check("fastest step", True, told),
  ]


def _grid(config):
  """Frames, height and width in tokens of what each pack is filled with."""
  side = math.isqrt(config.data.pack.tokens)
  return 1, side, side
