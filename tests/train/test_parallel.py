"""Every way to split a step over eight devices does what one device does."""

import functools

import chex
import jax
import numpy as np
import pytest

from goku_jax.data import packing
from goku_jax.flow.objective import make_loss
from goku_jax.models import attention
from goku_jax.parallel import attention as parallel
from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.sample.codec import Codec
from goku_jax.sample.restore import init_params, make_model
from goku_jax.train import step as steps
from goku_jax.train.optimizer import make_optimizer
from tests import runs

OPTIM = runs.read_config().optim.to_dict() | {"warmup_steps": 0}
WIDTH = 16  # of a head

STRATEGIES = {  # axes of the mesh, the ring, and heads of the model
  "replica": (dict(replica=8), 1, 8),
  "fsdp": (dict(fsdp=8), 1, 8),
  "hybrid": (dict(replica=2, fsdp=4), 1, 8),
  "tensor": (dict(fsdp=2, tensor=4), 1, 8),
  "ulysses": (dict(fsdp=2, sequence=4), 1, 8),
  "ring": (dict(fsdp=2, sequence=4), 4, 8),
  "ulysses x ring": (dict(fsdp=2, sequence=4), 2, 8),
  "ulysses, odd heads": (dict(fsdp=2, sequence=4), 1, 6),
  "ulysses x ring, odd heads": (dict(fsdp=1, sequence=8), 2, 6),
}


# What others hold as well, each for itself.
SLOW = (
  "replica",
  "fsdp",
  "tensor",
  "ulysses",
  "ring",
  "ulysses x ring",
  "ulysses, odd heads",
)


@pytest.fixture(scope="module")
def batch():
  """Eight packs of images and clips, one of them empty."""
  whole = runs.flow_batch(num_packs=8)
  members = [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9, 10], [11], [12, 13, 14]]
  batch = runs.repack(whole, members, capacity=packing.Capacity(256, 128, 4))
  empty = {k: np.zeros_like(x[:1]) for k, x in batch.items()}
  empty["sample_index_BG"] -= 1
  return {k: np.concatenate([x, empty[k]]) for k, x in batch.items()}


@functools.cache
def model_of(num_heads, **more):
  sizes = dict(model__width=WIDTH * num_heads, model__num_heads=num_heads)
  return make_model(runs.read_config(**sizes), Codec(), **more)


def make_step(model, tx):
  loss_fn = make_loss(model, **runs.LOSS)
  return functools.partial(
    steps.train_step, loss_fn=loss_fn, tx=tx, ema_decay=0.999
  )


@functools.cache
def start(num_heads):
  """Parameters at which all of them matter, on the host."""
  init = jax.jit(functools.partial(init_params, model_of(num_heads)))
  return jax.device_get(runs.stirred(init(jax.random.key(0)), 0.02))


@pytest.fixture(scope="module")
def alone(batch):
  """Losses and gradient norms of three steps on one device, and its state."""

  @functools.cache
  def run(num_heads):
    tx = make_optimizer(total_steps=100, **OPTIM)
    state = steps.init_state(start(num_heads), tx)
    step, told = jax.jit(make_step(model_of(num_heads), tx)), []
    for _ in range(3):
      state, metrics = step(state, batch, jax.random.key(0))
      told.append([float(metrics[k]) for k in ("loss", "grad_norm")])
    return told, jax.device_get(state)

  return run


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in STRATEGIES
  ],
)
def test_three_steps_are_those_of_one_device(name, batch, alone):
  axes, ring, num_heads = STRATEGIES[name]
  expected, after = alone(num_heads)
  mesh = meshes.make_mesh(**{"fsdp": 1} | axes)
  model = model_of(
    num_heads,
    attention_fn=parallel.shard_attention(attention.attend, mesh, ring=ring),
    text_attention_fn=parallel.shard_text_attention(attention.attend, mesh),
    weights_fn=rules.scatter_gradients,
  )
  tx = make_optimizer(total_steps=100, **OPTIM)
  with meshes.use(mesh):
    state = steps.init_state(start(num_heads), tx)
    placed = rules.shardings(mesh, state)
    state = jax.device_put(state, placed)
    inner = make_step(model, tx)
    chex.clear_trace_counter()  # it counts by the name, over all tests
    step = jax.jit(
      chex.assert_max_traces(lambda *args: inner(*args), n=1),
      out_shardings=(placed, None),
      donate_argnums=0,
    )
    here = batches.place(mesh, batch)
    for loss, norm in expected:
      before = state
      state, metrics = step(state, here, jax.random.key(0))
      np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
      np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
      assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
    assert step._cache_size() == 1
    assert jax.tree.map(lambda x: x.sharding, state) == placed
  runs.assert_near((state.params, state.ema), (after.params, after.ema), 1e-5)
