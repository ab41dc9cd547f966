"""The step: parts and devices change nothing; one compile; averages, clip."""

import functools
import itertools
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goku_jax.data import packing
from goku_jax.flow.objective import make_loss
from goku_jax.train import step as steps
from tests import runs

OPTIM = runs.read_config().optim.to_dict()


@pytest.fixture(scope="module")
def batch():
  """Eight packs of unequal counts, one of them empty."""
  whole = runs.flow_batch(num_packs=8)
  n = int((whole["sample_index_BG"] >= 0).sum())
  edges = [0, 1, 3, 4, 9, 12, 14, n]
  members = [range(a, b) for a, b in itertools.pairwise(edges)]
  batch = runs.repack(whole, members, capacity=packing.Capacity(1000, 320, 24))
  empty = {k: np.zeros_like(x[:1]) for k, x in batch.items()}
  empty["sample_index_BG"] -= 1
  return {k: np.concatenate([x, empty[k]]) for k, x in batch.items()}


@pytest.fixture(scope="module")
def start():
  return runs.flow_model()


def step_fn(model, tx, **more):
  loss_fn = make_loss(model, **runs.LOSS)
  settings = dict(loss_fn=loss_fn, tx=tx, ema_decay=0.999) | more
  return functools.partial(steps.train_step, **settings)


@pytest.mark.slow
def test_parts_of_unequal_counts_give_the_update_of_the_whole(batch, start):
  model, params = start
  counts = (batch["sample_index_BG"] >= 0).sum(1)
  assert len({*counts[::2], *counts[1::2]}) > 3
  tx = optax.trace(decay=0.0)  # its state is the gradient itself
  results = {}
  for micro_batches in (1, 2, 4):
    fn = jax.jit(step_fn(model, tx, micro_batches=micro_batches))
    state, metrics = fn(steps.init_state(params, tx), batch, jax.random.key(0))
    results[micro_batches] = metrics, state.opt_state.trace
  for micro_batches in (2, 4):
    runs.assert_near(results[micro_batches], results[1], 1e-5)


def toy_loss(params, batch, rng):
  """Squared distance of each number of the batch from one parameter."""
  del rng
  square = jnp.square(batch["x"] - params["w"])
  n = jnp.float32(square.size)
  sums = {"loss": (square.sum(), n), "loss_none": (0.0 * n, 0.0 * n)}
  return square.sum(), sums


def toy_run(tx, num_steps, ema_decay=0.999):
  state = steps.init_state({"w": jnp.float32(0)}, tx)
  states = []
  for _ in range(num_steps):
    state, metrics = steps.train_step(
      state,
      {"x": jnp.array([1.0, 3.0])},
      jax.random.key(0),
      loss_fn=toy_loss,
      tx=tx,
      ema_decay=ema_decay,
    )
    states.append((state, metrics))
  return states


def test_loss_and_gradient_are_means_over_samples():
  (state, metrics), *_ = toy_run(optax.sgd(1.0), 1)
  assert metrics["loss"] == 5.0  # (1 + 9) / 2
  assert metrics["grad_norm"] == 4.0
  assert np.isnan(metrics["loss_none"])  # of no sample
  assert state.params["w"] == 4.0
  assert state.step == 1


@pytest.mark.parametrize("decay", [0.999, 0.2])
def test_the_average_forgets_as_its_formula_says(decay):
  ema = 0.0
  for k, (state, _) in enumerate(toy_run(optax.sgd(0.1), 12, decay)):
    d = min(decay, (1 + k) / (10 + k))
    ema = d * ema + (1 - d) * float(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], ema, rtol=1e-5)


def test_more_averages_have_decays_of_their_own():
  tx = optax.sgd(0.1)
  settings = dict(loss_fn=toy_loss, tx=tx, more_ema=(0.5, 0.9))
  state = steps.init_state({"w": jnp.float32(0)}, tx, more_ema=(0.5, 0.9))
  for _ in range(12):
    state, _ = steps.train_step(
      state, {"x": jnp.ones(2)}, jax.random.key(0), ema_decay=0.2, **settings
    )
  for name, decay in (("ema_5", 0.5), ("ema_9", 0.9)):
    alone = toy_average(decay)
    np.testing.assert_allclose(state.more_ema[name]["w"], alone, rtol=1e-6)
  np.testing.assert_allclose(state.ema["w"], toy_average(0.2), rtol=1e-6)


def toy_average(decay):
  """That of twelve steps towards 1."""
  w, ema = 0.0, 0.0
  for k in range(12):
    w += 0.2 * (1 - w)
    d = min(decay, (1 + k) / (10 + k))
    ema = d * ema + (1 - d) * w
  return ema


def test_what_is_frozen_has_no_gradient():
  def loss(params, batch, rng):
    return toy_loss({"w": params["w"] + params["still"]}, batch, rng)

  tx = optax.sgd(1.0)
  state = steps.init_state({"w": jnp.float32(0), "still": jnp.float32(0)}, tx)
  state, metrics = steps.train_step(
    state,
    {"x": jnp.array([1.0, 3.0])},
    jax.random.key(0),
    loss_fn=loss,
    tx=tx,
    ema_decay=0.9,
    frozen=re.compile("^still$"),
  )
  assert (state.params["w"], state.params["still"]) == (4, 0)  # by sgd
  assert metrics["grad_norm"] == 4  # of what is trained alone


def test_no_samples_move_nothing():
  state = steps.init_state({"w": jnp.float32(2)}, optax.sgd(1.0))
  state, metrics = steps.train_step(
    state,
    {"x": jnp.zeros((0,))},
    jax.random.key(0),
    loss_fn=toy_loss,
    tx=optax.sgd(1.0),
    ema_decay=0.9,
  )
  assert state.params["w"] == 2
  assert metrics["loss"] == 0


@pytest.mark.slow
def test_one_batch_is_learned_by_heart():
  batch = runs.flow_batch(num_packs=1)
  batch = runs.repack(batch, [[0]])
  model, params = runs.flow_model()
  tx = optax.adam(3e-3)
  fn = jax.jit(step_fn(model, tx))
  state, losses = steps.init_state(params, tx), []
  for _ in range(1500):
    state, metrics = fn(state, batch, jax.random.key(0))
    losses.append(float(metrics["loss"]))
  assert min(losses) < losses[0] / 10


def golden(stage):
  return json.loads((runs.ROOT / f"tests/golden/{stage}.json").read_text())


@pytest.mark.parametrize("stage", ["flow", "vae"])
def test_one_step_gives_the_golden_numbers(stage):
  want = golden(stage)
  found = runs.golden_step(stage)
  assert found.keys() == want.keys()
  for name, value in found.items():
    np.testing.assert_allclose(value, want[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
  "stage", ["flow", pytest.param("vae", marks=pytest.mark.slow)]
)
def test_bfloat16_computes_beside_a_float32_state(stage):
  exact = golden(stage)
  before, after, metrics = runs.one_step(stage, model__dtype="bfloat16")
  assert not metrics.pop("skipped")
  chex.assert_trees_all_equal_dtypes(before, after)
  for x in jax.tree.leaves((after.params, after.ema, after.opt_state)):
    assert x.dtype in (jnp.float32, jnp.int32)  # counts are whole
  chex.assert_tree_all_finite((after.replace(window=()), metrics))
  assert abs(metrics["loss"] / exact["loss"] - 1) > 1e-6
  for name, value in metrics.items():
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact[name], rtol=0.05, err_msg=name)
