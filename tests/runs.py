"""What tests of whole runs share: small configs, batches, states, jobs.

Imported as `from tests import runs`.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from goku_jax import checkpoint, config, manifest, trees
from goku_jax.data import digits, packing, pipeline, planning, sources
from goku_jax.parallel import mesh as meshes
from goku_jax.sample.codec import Codec
from goku_jax.sample.restore import init_params, make_model
from goku_jax.train import loop
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.step import init_state, train_step

ROOT = pathlib.Path(__file__).parents[1]
PATCH = (1, 4, 4)
# Two levels, a patch below them, a downsampling in time between, and a linear
# coder beside: everything that an autoencoder of ours can have.
VAE_SIZES = dict(
  multipliers=(1, 2), time_levels=1, mid_blocks=1, patch=(2, 2, 2), linear=True
)


# What the flow's loss is made of, where a test needs no config.
LOSS = dict(
  time=dict(
    weights={"logit_normal": 1.0},
    mean=0.0,
    std=1.0,
    scale=1.29,
    shift=2.0,
    shift_tokens=0,
  ),
  caption_drop_rate=0.4,
)
FLAGS = "--xla_backend_optimization_level=0"  # which halves compiling


def start_job(name, *arguments, **environment):
  """A job as its users run it, in a process of its own on one device."""
  return subprocess.Popen(
    [sys.executable, "-m", f"goku_jax.{name}", *arguments],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": FLAGS} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def start_program(program, *arguments, **environment):
  """Python's text in a process of its own, on one device."""
  return subprocess.Popen(
    [sys.executable, "-c", program, *map(str, arguments)],
    cwd=ROOT,
    env=os.environ
    | {"XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)}
    | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def run_job(name, *arguments, status=0, **environment):
  """Runs a job to its end; returns what it printed on both."""
  with start_job(name, *arguments, **environment) as process:
    try:
      out, err = (text.decode() for text in process.communicate(timeout=200))
    except subprocess.TimeoutExpired:
      process.kill()  # else it would live on beside other tests
      raise
  assert process.returncode == status, out + err
  return out, err


def read_config(stage="flow", **overrides):
  """The debug config of a stage with dotted keys overridden."""
  found = config.read_config(f"{ROOT}/configs/digits.py:stage={stage},debug")
  with found.unlocked():
    found.update_from_flattened_dict(
      {key.replace("__", "."): value for key, value in overrides.items()}
    )
  return found.lock()


def flow_batch(num_packs=4, step=0, **more):
  """A packed batch of digits as pixels, clips and images together."""
  raw = digits.Digits(num_frames=5, canvas=16, num_samples=64)
  source = sources.Pixels(raw)
  planner = planning.Planner(
    source.sizes(PATCH, 32),
    capacity=packing.Capacity(200, 80, 8),
    num_packs=num_packs,
    lookahead=64,
    seed=0,
  )
  return next(
    pipeline.flow_batches(
      source,
      planner,
      patch_size=PATCH,
      first_step=step,
      num_steps=1,
      **more,
    )
  )


def repack(batch, members, capacity=None):
  """A batch of the samples of `batch` in other packs, by their place."""
  packs = packing.unpack(batch, patch_size=PATCH)
  samples = [sample for pack in packs for sample in pack]
  capacity = capacity or packing.Capacity(200, 80, 8)
  made = [
    packing.pack(
      [samples[i] for i in pack], capacity, patch_size=PATCH, channels=3
    )
    for pack in members
  ]
  return {k: np.concatenate([pack[k] for pack in made]) for k in batch}


def stirred(params, scale=0.1, seed=0):
  """Parameters with noise added: as made, the model's output is zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32), params
  )


def assert_near(one, two, rtol):
  """Relative to the size of each array: single numbers may cancel."""

  def error(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)

  chex.assert_trees_all_equal_comparator(
    lambda a, b: error(a, b) < rtol,
    lambda a, b: f"they differ by {error(a, b):.1e}",
    one,
    two,
  )


def flow_model():
  """The debug model with text, and parameters at which all of it matters."""
  model = make_model(read_config(), Codec())
  init = jax.jit(functools.partial(init_params, model))
  return model, stirred(init(jax.random.key(0)))


def read_arrays(workdir, step=None):
  """Every array of a checkpoint as saved, by tree and path."""
  folder = pathlib.Path(workdir) / "checkpoints"
  step = step or checkpoint.whole_steps(folder)[-1]
  record = manifest.read(folder / str(step))
  abstract = {
    name: {
      path: jax.ShapeDtypeStruct(tuple(x["shape"]), x["dtype"])
      for path, x in tree.items()
    }
    for name, tree in record["trees"].items()
  }
  return {
    name: trees.read_tree(folder / str(step), name, tree)
    for name, tree in abstract.items()
  }


def one_step(stage, **overrides):
  """State before and after one step of the debug config, and its metrics."""
  found = read_config(stage, **overrides)
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  task = loop.TASKS[stage](found, mesh)
  batch = next(task.batches(0))
  rng = jax.random.key(found.seed)
  params = stirred(jax.jit(task.init_params)(rng), 0.02)
  optim = found.optim.to_dict() | dict(warmup_steps=0)  # it starts at zero
  tx = make_optimizer(total_steps=found.total_steps, **optim)
  state = init_state(params, tx)
  settings = dict(loss_fn=task.loss_fn, tx=tx, ema_decay=found.ema_decay)
  fn = jax.jit(functools.partial(train_step, **settings))
  return state, *fn(state, batch, rng)


def read_task(stage, **overrides):
  """What the loop knows of the debug config, on one device."""
  found = read_config(stage, **overrides)
  return loop.TASKS[stage](found, meshes.make_mesh(devices=jax.devices()[:1]))


def golden_step(stage) -> dict:
  """What one step of the debug config does, as numbers."""
  before, after, metrics = one_step(stage)
  update = jax.tree.map(jnp.subtract, after.params, before.params)
  numbers = {**metrics, "update_norm": optax.tree.norm(update)}
  assert not numbers.pop("skipped")
  numbers["parameters"] = sum(x.size for x in jax.tree.leaves(before.params))
  return {name: float(value) for name, value in numbers.items()}


def main():
  """Writes the golden numbers anew: `python -m tests.runs`.

  The commit that does so says why they changed.
  """
  for stage in ("flow", "vae"):
    path = ROOT / f"tests/golden/{stage}.json"
    path.write_text(json.dumps(golden_step(stage), indent=2) + "\n")


if __name__ == "__main__":
  main()
