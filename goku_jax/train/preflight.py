"""What is told before the first step: what there is, and how long it takes."""

import itertools

import numpy as np

from goku_jax import costs
from goku_jax.data import shards
from goku_jax.data.planning import Planner

LOOK = 16  # steps that are looked at
MOST = 20  # shapes that are listed
MFU = 0.4  # of the peak, which a well-set run reaches


def tell(planner: Planner, opened, *, first_step, total_steps, step_flops):
  """Prints counts per source and shape, epochs, fill and the expected time.

  Args:
    planner: of the run.
    opened: a `flow_source.FlowSource`.
    first_step: from which it goes on.
    total_steps: of the run.
    step_flops: training FLOPs of a step, of its packs (as the planner says).
  """
  source, member = opened.source, opened.member
  seen = planner.seen(first_step)
  print("samples  images   clips  source")
  for k, name in enumerate(opened.names):
    clips = int(source.is_video[member == k].sum())
    count = int((member == k).sum())
    drawn = int(seen[member == k].sum())
    more = f", {drawn} seen before step {first_step}" if first_step else ""
    print(f"{count:>7} {count - clips:>7} {clips:>7}  {name}{more}")
  shapes = shards.count_shapes(source.shapes.tolist())
  print("samples  frames x height x width of latents")
  for shape, count in itertools.islice(shapes.items(), MOST):
    print(f"{count:>7}  {shape}")
  if len(shapes) > MOST:
    print(f"         and {len(shapes) - MOST} shapes more")
  steps = [planner.step(first_step + i) for i in range(LOOK)]
  packs = [pack for step in steps for pack in step]
  samples = sum(map(len, packs)) / LOOK
  index = [i for pack in packs for i, _ in pack]
  fill = planner.sizes[index, 0].sum() / (len(packs) * planner.capacity.tokens)
  per_epoch = len(source) / samples
  print(
    f"{planner.num_packs} packs of {planner.capacity.tokens} tokens a step,"
    f" {fill:.1%} full, {samples:.1f} samples;"
    f" an epoch has {per_epoch:.1f} steps, {total_steps} steps are"
    f" {total_steps / per_epoch:.2f} epochs"
  )
  flops = float(np.mean([step_flops(step) for step in steps]))
  peak = costs.peak_flops()
  hours = (total_steps - first_step) * flops / (MFU * peak) / 3600
  print(
    f"{flops / 1e12:.4g} TFLOPs a step: {hours:.3g} hours at {MFU:.0%} of"
    f" {peak / 1e12:.3g} TFLOP/s",
    flush=True,
  )
