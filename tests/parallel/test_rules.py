"""Every array of every model's state has one place, by shapes alone."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax.core import FrozenDict
from jax.sharding import PartitionSpec as P

from goku_jax.data import schema
from goku_jax.models import goku, transformer, vae, wan_vae
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.train import optimizer, step

TEXT = dict(width=64, depth=1, num_heads=2)
OPTIM = dict(learning_rate=1e-3, warmup_steps=2, schedule="cosine")
OPTIM |= dict(total_steps=9, b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1.0)


def state_of(params, rule="adamw"):
  tx = optimizer.make_optimizer(rule=rule, **OPTIM)
  return jax.eval_shape(lambda params: step.init_state(params, tx), params)


@functools.cache
def flow_state(variant, has_text=False, **sizes):
  """The whole training state: parameters, average and moments, as shapes."""
  if has_text:
    sizes["text"] = TEXT
  model = goku.make_goku(variant, **sizes)
  cfg = model.config
  numbers = dict(P=cfg.patch_width, K=cfg.condition_width)
  packs = schema.empty_packs(B=1, L=4, S=4, G=2, **numbers)
  batch = jax.tree.map(jnp.asarray, packs)
  t, dropped = jnp.zeros((1, 2)), jnp.zeros((1, 2), bool)
  init = jax.eval_shape(
    model.init, jax.random.key(0), batch["tokens_BLP"], t, batch, dropped
  )
  return state_of(init["params"])


@functools.cache
def vae_state(variant, **more):
  video = jnp.zeros((1, 5, 16, 16, 3))
  init = jax.eval_shape(vae.make_vae(variant).init, jax.random.key(0), video)
  return state_of(init["params"], **more)


STATES = {
  f"goku {name}": lambda name=name: flow_state(name, has_text=True)
  for name in transformer.VARIANTS
}
STATES["goku classes"] = lambda: flow_state("debug", num_classes=10)
STATES["goku told of frames"] = lambda: flow_state("debug", conditioned=True)
STATES["goku adapters"] = lambda: flow_state(
  "8b",
  has_text=True,
  lora=FrozenDict(rank=16, alpha=16.0, targets="blocks/self_attn/"),
)
STATES["goku biases"] = lambda: flow_state(
  "debug", has_text=True, attention_bias=True
)
STATES |= {
  f"vae {name}": lambda name=name: vae_state(name)
  for name in vae.VARIANTS | wan_vae.VARIANTS
}
STATES["vae small, muon"] = lambda: vae_state("small", rule="muon")


def paths(state):
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  name = lambda path: (
    "/" + jax.tree_util.keystr(path, simple=True, separator="/")
  )
  return {name(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("name", STATES)
def test_every_array_has_one_rule_and_eight_divides_what_it_splits(name):
  for path, leaf in paths(STATES[name]()).items():
    spec = rules.spec_for(path)  # refuses none, and more than one
    assert len(spec) <= leaf.ndim, path
    for size, axis in zip(leaf.shape, spec, strict=False):
      assert axis is None or size % 8 == 0, (path, leaf.shape, spec)


@pytest.mark.parametrize("name", STATES)
def test_nothing_large_is_held_whole_by_every_device(name):
  for path, leaf in paths(STATES[name]()).items():
    if not any(rules.spec_for(path)):
      assert leaf.size <= 1 << 20, path  # 4 MiB in float32


def test_every_rule_is_used():
  names = [path for make in STATES.values() for path in paths(make())]
  for pattern, _ in rules.TABLE:
    assert any(re.search(pattern, name) for name in names), pattern


def test_weights_of_a_step_are_whole_over_the_sequence():
  path = "/params/transformer/blocks/mlp/up/kernel"
  assert rules.spec_for(path) == P(None, "fsdp", ("tensor", "sequence"))
  weights = rules.spec_for(path, weights=True)
  assert weights == P(None, ("fsdp",), ("tensor",))


@pytest.mark.parametrize("path", ["/params/odd", "/params/x/kernel"])
def test_an_array_without_a_rule_is_refused_by_name(path):
  with pytest.raises(ValueError, match=f"0 sharding rules match '{path}'"):
    rules.spec_for(path)


def test_the_scanned_axis_is_left_whole_and_moments_follow_parameters():
  mesh = meshes.make_mesh(replica=2)
  state = STATES["goku debug"]()
  placed = rules.shardings(mesh, state)
  kernel = lambda tree: tree["transformer"]["blocks"]["mlp"]["down"]["kernel"]
  assert kernel(placed.params).spec == P(None, ("tensor", "fsdp"), "sequence")
  assert kernel(placed.ema) == kernel(placed.params)
  adam = placed.opt_state[1][0]
  assert kernel(adam.mu) == kernel(adam.nu) == kernel(placed.params)
  assert placed.step.spec == P()
  assert jax.tree.structure(placed) == jax.tree.structure(state)
