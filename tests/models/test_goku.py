"""The whole model: text encoder and transformer as training calls them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import goku, transformer
from goku_jax.sample.codec import Codec
from goku_jax.sample.restore import init_params, make_model
from goku_jax.typing import UserError
from tests import runs

TEXT = dict(width=32, depth=1, num_heads=2)


def batch_of_one():
  """A pack of one segment of four tokens, its caption, the empty caption."""
  ids = jnp.array([[1, 1, 1, 1, 0]])
  return dict(
    segment_ids_BL=ids,
    positions_BL3=jnp.zeros((1, 5, 3), int).at[0, :4, 2].set(jnp.arange(4)),
    text_ids_BS=jnp.array([[256, 70, 80, 256, 0]]),
    text_segment_ids_BS=jnp.array([[-1, 1, 1, 1, 0]]),
    text_positions_BS=jnp.array([[0, 0, 1, 2, 0]]),
    class_BG=jnp.zeros((1, 2), int),
  )


def test_calling_is_encoding_and_then_the_velocity(fill):
  model, batch = goku.make_goku("debug", text=TEXT), batch_of_one()
  x = jax.random.normal(jax.random.key(0), (1, 5, model.config.patch_width))
  args = x, jnp.array([[0.3, 0.0]]), batch, jnp.zeros((1, 2), bool)
  variables = {
    "params": fill(
      jax.eval_shape(model.init, jax.random.key(1), *args)["params"]
    )
  }
  apply = jax.jit(model.apply, static_argnames="method")
  text = apply(variables, batch, method="encode_text")
  velocity = apply(variables, *args[:3], text, args[3], method="velocity")
  expected = apply(variables, *args)
  np.testing.assert_allclose(velocity, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(velocity).max() > 0


def test_captions_reach_the_velocity_through_the_encoder(fill):
  """And the encoder learns from the flow: its gradient is not zero."""
  model, batch = goku.make_goku("debug", text=TEXT), batch_of_one()
  x = jax.random.normal(jax.random.key(0), (1, 5, model.config.patch_width))
  rest = jnp.array([[0.3, 0.0]]), batch, jnp.zeros((1, 2), bool)
  params = fill(
    jax.eval_shape(model.init, jax.random.key(1), x, *rest)["params"]
  )
  loss = lambda params: jnp.square(model.apply({"params": params}, x, *rest))
  grads = jax.jit(jax.grad(lambda params: loss(params)[0, :4].sum()))(params)
  for grad in jax.tree.leaves(grads["text"]):
    assert np.abs(grad).max() > 0


def test_the_width_of_text_follows_the_encoder():
  model = goku.make_goku("2b", text=TEXT)
  assert model.config.text_width == TEXT["width"]
  assert goku.make_goku("2b").config.text_width == 2048
  assert goku.make_goku("debug").config.text_width == 0


def test_sizes_override_the_variant_and_dtype_reaches_both_parts():
  model = goku.make_goku("debug", text=TEXT, depth=5, dtype="bfloat16")
  assert model.config.depth == 5
  assert model.config.dtype == model.text_config.dtype == jnp.bfloat16


def test_an_unknown_variant_is_refused_with_the_known_ones():
  with pytest.raises(UserError, match=r"variant='3b' is not one of 1b, b, 2b"):
    goku.make_goku("3b")


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    (dict(num_heads=3), "num_heads=3 does not divide width=32"),
    (dict(num_heads=0), "num_heads=0 does not divide width=32"),
    (dict(num_heads=4), "even head width >= 16, got 8"),
    (dict(dtype="float16"), "dtype='float16' is not one of float32, bfloat16"),
    (dict(positions="none"), "positions=.none. is not one of rope, sinusoidal"),
    (dict(remat="some"), "remat='some': set one of none, full, keep_attention"),
    (dict(remat="mlp:away"), "or names of attention, mlp"),
    (dict(text=TEXT | dict(num_heads=5)), "num_heads=5 does not divide"),
    (dict(text=dict(width=33, num_heads=3)), "text.width=33: set an even"),
    (dict(text=dict(width=2, num_heads=1)), "text.width=2: set an even"),
  ],
)
def test_sizes_that_cannot_be_built_are_refused_at_once(sizes, message):
  with pytest.raises(UserError, match=message):
    goku.make_goku("debug", **sizes)


def test_every_variant_can_be_made():
  for variant in transformer.VARIANTS:
    assert goku.make_goku(variant).config.depth > 0


def test_a_layer_for_given_frames_changes_nothing_at_first():
  """Section 2.5: the first step's output is the text-to-video model's."""
  batch = runs.flow_batch(num_packs=2)
  plain, params = runs.flow_model()
  told = make_model(runs.read_config(model__conditioned=True), Codec())
  more = jax.jit(functools.partial(init_params, told))(jax.random.key(1))
  params_told = jax.tree.map(jnp.asarray, dict(params))
  params_told["transformer"] = {
    **params["transformer"],
    "condition": more["transformer"]["condition"],
  }
  B, L = batch["segment_ids_BL"].shape
  given = np.random.default_rng(0).normal(
    size=(B, L, told.config.condition_width)
  )
  t_BG = jnp.full(batch["visit_BG"].shape, 0.3)
  dropped_BG = jnp.zeros(t_BG.shape, bool)
  apply = lambda model, params, batch: jax.jit(model.apply)(
    {"params": params}, batch["tokens_BLP"], t_BG, batch, dropped_BG
  )
  told_batch = {**batch, "condition_BLK": given.astype(np.float32)}
  one = apply(plain, params, batch)
  two = apply(told, params_told, told_batch)
  np.testing.assert_array_equal(one, two)
  kernel = params_told["transformer"]["condition"]["mix"]["kernel"]
  assert kernel.shape == (7, 3)
  params_told["transformer"]["condition"]["mix"]["kernel"] = kernel + 0.1
  assert np.abs(apply(told, params_told, told_batch) - one).max() > 1e-4
