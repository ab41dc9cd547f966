"""Adapters change nothing at first, and merged compute what they did apart."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import lora
from goku_jax.sample.codec import Codec
from goku_jax.sample.restore import init_params, make_model
from goku_jax.typing import UserError
from tests import runs

LORA = dict(rank=4, alpha=6.0, targets="blocks/")  # every layer of the blocks


def make(seed=0, **changes):
  """A model with adapters, and initial parameters."""
  config = runs.read_config()
  with config.unlocked():
    config.model.lora = LORA | changes
  model = make_model(config, Codec())
  init = jax.jit(functools.partial(init_params, model))
  return model, init(jax.random.key(seed))


@pytest.fixture(scope="module")
def velocity():
  """A model on one batch, by its parameters."""
  batch = jax.tree.map(jnp.asarray, runs.flow_batch())
  t_BG = jnp.full(batch["visit_BG"].shape, 0.3)
  dropped_BG = t_BG > 1
  args = batch["tokens_BLP"], t_BG, batch, dropped_BG
  return lambda model, params: model.apply({"params": params}, *args)


def test_the_adapters_of_a_new_run_change_nothing(velocity):
  plain, base = runs.flow_model()
  adapted, params = make()
  params = lora.join(lora.split(params)[0], base)
  chex.assert_trees_all_equal(velocity(plain, base), velocity(adapted, params))


def test_merged_weights_compute_what_adapters_do(velocity):
  adapted, params = make()
  params = runs.stirred(params)
  plain, base = runs.flow_model()
  merged = lora.merge(params, **LORA)
  chex.assert_trees_all_equal_shapes(merged, base)
  apart, together = velocity(adapted, params), velocity(plain, merged)
  runs.assert_near(apart, together, 1e-6)
  still = velocity(plain, lora.split(params)[1])
  assert np.linalg.norm(apart - still) > 0.1 * np.linalg.norm(still)


def test_a_pattern_finds_the_layers():
  adapters, _ = lora.split(make(targets="self_attn/(q|v)$")[1])
  blocks = adapters["transformer"]["blocks"]
  assert blocks.keys() == {"self_attn"}
  assert blocks["self_attn"].keys() == {"q_lora", "v_lora"}
  assert blocks["self_attn"]["q_lora"]["a"].shape == (2, 32, 4)


def test_what_is_split_is_joined_again():
  _, params = make()
  chex.assert_trees_all_equal(lora.join(*lora.split(params)), params)
  _, plain = runs.flow_model()
  adapters, base = lora.split(plain)
  assert not adapters
  assert lora.join(base, None) is base


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    (dict(rank=0), "model.lora.rank=0: set 1 or more"),
    (dict(alpha=0.0), "model.lora.alpha=0.0: set a number above 0"),
    (dict(targets="("), r"model.lora.targets='\(' is no pattern: "),
    (dict(targets="nowhere"), "targets='nowhere' finds no dense layer"),
  ],
)
def test_adapters_that_cannot_be_are_refused(changes, told):
  with pytest.raises(UserError, match=told):
    make(**changes)
