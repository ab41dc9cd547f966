"""Schedules by their formulas; the clip, AdamW and Muon by one step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goku_jax import trees
from goku_jax.train.optimizer import make_optimizer, make_schedule
from goku_jax.typing import UserError

RULE = dict(b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1.0)


def schedule_of(kind, warmup_steps=10, total_steps=110, **more):
  schedule = make_schedule(
    learning_rate=2.0,
    warmup_steps=warmup_steps,
    schedule=kind,
    total_steps=total_steps,
    **more,
  )
  return np.array([schedule(s) for s in range(total_steps + 1)])


def test_the_stable_rate_falls_in_a_line_at_the_end():
  wsd = schedule_of("wsd", decay_steps=20)
  np.testing.assert_allclose(wsd[:11], np.linspace(0, 2, 11), rtol=1e-6)
  assert (wsd[10:91] == 2.0).all()
  np.testing.assert_allclose(wsd[90:], np.linspace(2, 0, 21), atol=1e-6)


@pytest.mark.parametrize("decay_steps", [0, 101])
def test_a_fall_that_does_not_fit_the_run_is_refused(decay_steps):
  with pytest.raises(UserError, match=f"decay_steps={decay_steps}: .* 1 to"):
    schedule_of("wsd", decay_steps=decay_steps)


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_the_rate_rises_in_a_line(kind):
  np.testing.assert_allclose(
    schedule_of(kind)[:11], np.linspace(0, 2, 11), rtol=1e-6
  )


def test_after_the_rise_it_stays_or_falls_to_zero():
  assert (schedule_of("constant")[10:] == 2.0).all()
  cosine = schedule_of("cosine")[10:]
  want = 1 + np.cos(np.pi * np.arange(101) / 100)
  np.testing.assert_allclose(cosine, want, atol=1e-6)


def test_without_warm_up_the_first_step_counts():
  assert schedule_of("constant", warmup_steps=0)[0] == 2.0


def test_an_unknown_schedule_fails():
  with pytest.raises(UserError, match="'linear' is not one of constant, cos"):
    schedule_of("linear")


def update_of(params, gradient, **more):
  """The first update and the state after it."""
  tx = make_optimizer(
    learning_rate=0.1,
    warmup_steps=0,
    schedule="constant",
    total_steps=10,
    **RULE | more,
  )
  return tx.update(gradient, tx.init(params), params)


def first_update(gradient, **more):
  params = {"w": jnp.array([1.0, -2.0])}
  updates, state = update_of(params, {"w": jnp.array(gradient)}, **more)
  return np.asarray(updates["w"]), state


def test_the_gradient_is_clipped_by_its_whole_norm():
  for gradient, clipped in (((30.0, 40.0), (0.6, 0.8)), ((0.3, 0.4),) * 2):
    _, state = first_update(gradient)
    mu = optax.tree.get(state, "mu")["w"]
    np.testing.assert_allclose(mu, 0.1 * np.array(clipped), rtol=1e-5)


def test_decay_pulls_parameters_beside_the_update():
  plain, _ = first_update((0.3, -0.4))
  np.testing.assert_allclose(plain, [-0.1, 0.1], rtol=1e-4)
  decayed, _ = first_update((0.3, -0.4), weight_decay=0.5, decayed="w")
  np.testing.assert_allclose(decayed - plain, [-0.05, 0.1], rtol=1e-4)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_kernels_decay_and_norms_and_biases_do_not(rule):
  params = {n: jnp.ones((4, 4)) for n in ("kernel", "scale", "bias")}
  still = jax.tree.map(jnp.zeros_like, params)
  update, _ = update_of(params, still, weight_decay=0.5, rule=rule)
  np.testing.assert_allclose(update["kernel"], -0.05, rtol=1e-5)
  assert not update["scale"].any()
  assert not update["bias"].any()


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_what_is_frozen_stays_and_has_no_moments(rule):
  params = {n: {"kernel": jnp.ones((4, 8))} for n in ("head", "body")}
  more = dict(weight_decay=0.5, rule=rule, frozen="^body/")
  update, state = update_of(params, params, **more)
  assert update["head"]["kernel"].all()
  assert not update["body"]["kernel"].any()
  names = [trees.path_of(k) for k, _ in jax.tree.leaves_with_path(state)]
  assert any("head/kernel" in name for name in names)
  assert not any("body" in name for name in names)


@pytest.mark.parametrize("name", ["decayed", "frozen"])
def test_what_is_no_pattern_is_refused(name):
  with pytest.raises(UserError, match=rf"optim\.{name}='\(' is no pattern"):
    first_update((0.3, 0.4), weight_decay=0.1, **{name: "("})


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("clip_norm", 0.0),
    ("clip_norm", float("nan")),
    ("b1", 1.0),
    ("b2", -0.1),
    ("weight_decay", -1e-3),
  ],
)
def test_a_rule_that_cannot_learn_is_refused(name, value):
  with pytest.raises(UserError, match=rf"optim\.{name}={value}: set"):
    first_update((0.3, 0.4), **{name: value})


def muon_update(gradient):
  params = jax.tree.map(jnp.zeros_like, gradient)
  return update_of(params, gradient, rule="muon", clip_norm=1e9)[0]


def normal(*shape):
  return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_muon_moves_a_kernel_alike_in_every_direction(shape):
  """Five Newton-Schulz steps leave singular values between 0.68 and 1.13."""
  gradient = normal(*shape)
  update = muon_update({"kernel": gradient})["kernel"]
  u, _, v = jnp.linalg.svd(gradient, full_matrices=False)
  unit = update / (-0.1 * 0.2 * np.sqrt(24))  # arXiv:2502.16982, eq. 4
  sizes = np.diag(u.T @ unit @ v.T)
  assert (sizes > 0.6).all()
  assert (sizes < 1.2).all()
  np.testing.assert_allclose(u * sizes @ v, unit, atol=1e-4)


@pytest.mark.slow
def test_to_muon_a_convolution_is_one_matrix_and_layers_are_many():
  gradient = normal(3, 3, 3, 4, 8)
  want = muon_update({"kernel": gradient.reshape(-1, 8)})["kernel"]
  made = muon_update({"kernel": gradient})["kernel"]
  np.testing.assert_allclose(made.reshape(-1, 8), want, atol=1e-6)
  layers = normal(2, 6, 8) * jnp.array([1.0, 50.0])[:, None, None]
  made = muon_update({"blocks": {"kernel": layers}})["blocks"]["kernel"]
  for layer, update in zip(layers, made, strict=True):
    alone = muon_update({"kernel": layer})["kernel"]
    np.testing.assert_allclose(update, alone, atol=1e-6)


def test_muon_leaves_all_but_kernels_to_adam():
  gradient = {"bias": normal(8), "embedding": normal(8, 4)}
  tx = optax.adamw(0.1, b1=0.9, b2=0.99, weight_decay=0.0, nesterov=True)
  params = jax.tree.map(jnp.zeros_like, gradient)
  want = tx.update(gradient, tx.init(params), params)[0]
  made = muon_update(gradient)
  for name in gradient:
    np.testing.assert_allclose(made[name], want[name], rtol=1e-6)


def test_an_unknown_rule_fails():
  with pytest.raises(UserError, match="rule='sgd' is not one of adamw, muon"):
    first_update((0.3, 0.4), rule="sgd")


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_the_first_moment_may_be_held_in_half(rule):
  more = dict(learning_rate=1e-2, warmup_steps=0, schedule="constant")
  make = lambda dtype: make_optimizer(
    rule=rule, total_steps=9, momentum_dtype=dtype, **RULE | more
  )
  rng = np.random.default_rng(0)
  params = {
    "kernel": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32),
    "bias": jnp.ones(8),
  }
  moved = {}
  for dtype in ("float32", "bfloat16"):
    tx = make(dtype)
    state, new = tx.init(params), params
    for k in range(3):
      grads = jax.tree.map(lambda x, k=k: jnp.cos(x * (k + 1)), new)
      updates, state = tx.update(grads, state, new)
      new = optax.apply_updates(new, updates)
    moved[dtype] = new
    found = {x.dtype.name for x in jax.tree.leaves(state) if x.ndim}
    assert found == {"float32", dtype}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *moved.values()
  )
  assert (moved["float32"]["kernel"] != moved["bfloat16"]["kernel"]).any()
