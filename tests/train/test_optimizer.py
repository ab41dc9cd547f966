"""Schedules by their formulas; the clip and AdamW by one step."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goku_jax.train.optimizer import make_optimizer, make_schedule
from goku_jax.typing import UserError

RULE = dict(b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1.0)


def schedule_of(kind, warmup_steps=10, total_steps=110):
  schedule = make_schedule(
    learning_rate=2.0,
    warmup_steps=warmup_steps,
    schedule=kind,
    total_steps=total_steps,
  )
  return np.array([schedule(s) for s in range(total_steps + 1)])


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


def first_update(gradient, **more):
  tx = make_optimizer(
    learning_rate=0.1,
    warmup_steps=0,
    schedule="constant",
    total_steps=10,
    **RULE | more,
  )
  params = {"w": jnp.array([1.0, -2.0])}
  state = tx.init(params)
  updates, state = tx.update({"w": jnp.array(gradient)}, state, params)
  return np.asarray(updates["w"]), state


def test_the_gradient_is_clipped_by_its_whole_norm():
  for gradient, clipped in (((30.0, 40.0), (0.6, 0.8)), ((0.3, 0.4),) * 2):
    _, state = first_update(gradient)
    mu = optax.tree.get(state, "mu")["w"]
    np.testing.assert_allclose(mu, 0.1 * np.array(clipped), rtol=1e-5)


def test_decay_pulls_parameters_beside_the_update():
  plain, _ = first_update((0.3, -0.4))
  np.testing.assert_allclose(plain, [-0.1, 0.1], rtol=1e-4)
  decayed, _ = first_update((0.3, -0.4), weight_decay=0.5)
  np.testing.assert_allclose(decayed - plain, [-0.05, 0.1], rtol=1e-4)


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
