"""The process in which `step.py` has a step compiled and timed."""

import itertools
import statistics
import time

import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from goku_jax import costs, job
from goku_jax.bench import machine, training
from goku_jax.models.goku import make_goku

FROM_CACHE = "/jax/compilation_cache/cache_hits"


def main(workdir, steps):
  """Figures of the config in `workdir`: of the start, and of steps if any."""
  config = job.load_config(workdir, stage="flow")
  count = steps + training.WARM_UP
  with training.opened(config, count) as run:
    batch = next(run.task.batches(0))
    placed, events = run.place(batch), []
    jax.monitoring.register_event_listener(
      lambda name, **_: events.append(name)
    )
    trace_seconds, compile_seconds = run.compile(placed)
    from_cache = FROM_CACHE in events
    run.time([placed])
    start = {
      "trace_seconds": trace_seconds,
      "compile_seconds": compile_seconds,
      "from_cache": from_cache,
      "first_step_at": time.time(),
    }
    if not steps:
      return {"start": start}
    alone = run.time(itertools.repeat(placed, count)), [run.work(batch)]
    fed, worked = {}, []
    if training.has_data(config):
      seconds = run.time(_read(run, count, worked))
      fed["with_data"] = seconds, worked[training.WARM_UP :]
    peak_bytes, of = machine.peak_memory()
    parameters = sum(x.size for x in jax.tree.leaves(run.state.params))
  # May time one device, so outside of the mesh.
  peak, product = costs.peak_flops(), matmul_flops(config, run.mesh)
  rates = {"mfu": peak, "matmul_share": product}
  kind = jax.devices()[0].device_kind
  return {
    "start": start,
    "devices": jax.device_count(),
    "parameters": parameters,
    "without_data": _figures(*alone, rates),
    **{name: _figures(*timed, rates) for name, timed in fed.items()},
    "peak_tflops": peak / 1e12,
    "peak_by": "vendor" if costs.find_chip(kind) else "measurement",
    "matmul_tflops": product / 1e12,
    "peak_memory_gib": peak_bytes / costs.GIB,
    "peak_memory_of": of,
    **machine.describe(config.model.dtype),
  }


def _read(run, count, worked):
  """Placed batches as the loader has them; notes the work of each."""
  for batch in itertools.islice(run.task.batches(0), count):
    worked.append(run.work(batch))
    yield run.place(batch)


def _figures(seconds, worked, rates):
  """Rates by the median step; `rates` are those of which shares are told."""
  flops, tokens = np.mean(worked, 0).tolist()
  median = statistics.median(seconds)
  return {
    "step_seconds": median,
    "min_step_seconds": min(seconds),
    "tokens": tokens,
    "tokens_per_second": tokens / median,
    "tflops": flops / median / 1e12,
    **{name: costs.mfu(flops, median, rate) for name, rate in rates.items()},
  }


def matmul_flops(config, mesh) -> float:
  """FLOP/s of all devices together at the products of the model's MLPs.

  The tokens of a micro-batch are dealt to the devices and go through the two
  products of each layer, with nothing between them: at these sizes a step can
  hardly be faster.
  """
  cfg, data = make_goku(**config.model).config, config.data
  tokens = data.num_packs * data.pack.tokens // config.micro_batches
  tokens = max(tokens // mesh.size, 1) * mesh.size
  width, wide = cfg.width, int(cfg.width * cfg.mlp_ratio)
  rows = NamedSharding(mesh, P(mesh.axis_names))
  whole = NamedSharding(mesh, P())

  def make(rng):
    shapes = ((tokens, width), (width, wide), (wide, width))
    x, up, down = (jax.random.normal(rng, s, cfg.dtype) for s in shapes)
    return x, up / width**0.5, down / wide**0.5

  def products(x_LD, up, down):
    for _ in range(cfg.depth):
      x_LD = x_LD @ up @ down
    return x_LD

  args = jax.jit(make, out_shardings=(rows, whole, whole))(jax.random.key(0))
  products = jax.jit(products, out_shardings=rows)
  _, seconds = machine.fastest(products, *args)
  return 4 * tokens * width * wide * cfg.depth / seconds


if __name__ == "__main__":
  flags.DEFINE_integer("steps", 0, "that are timed", lower_bound=0)
  job.run(main)
