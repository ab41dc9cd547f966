"""Packed samples are strangers: each gets what it gets alone.

Goku packs images and videos along the sequence (section 2.2), and each sample
has its own flow time, caption and class.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import transformer


@pytest.fixture(scope="module")
def samples(make_sample):
  """A clip, an image, a clip without its caption, an image without text."""
  return [
    make_sample(0, (2, 2, 3), text=4, t=0.1, label=1),
    make_sample(1, (1, 2, 2), text=2, t=0.9, label=2),
    make_sample(2, (2, 1, 2), text=3, t=0.5, label=3, dropped=True),
    make_sample(3, (1, 2, 3), text=0, t=0.3, label=4),
  ]


@pytest.fixture(scope="module")
def apply(debug_model):
  return jax.jit(debug_model[0].apply)


def of_segments(batch, out):
  ids = np.asarray(batch[0][2][0])
  return [np.asarray(out)[0, ids == g] for g in range(1, ids.max() + 1)]


def near(a, b, relative=1e-5):
  scale = max(np.abs(b).max(), 1e-30)
  np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale)


def test_a_packed_sample_gets_the_output_it_gets_alone(
  apply, debug_model, pack, samples
):
  variables = {"params": debug_model[1]}
  together = pack(samples)
  outs = of_segments(together, apply(variables, *together[0], **together[1]))
  for sample, out in zip(samples, outs, strict=True):
    alone = pack([sample])
    (expected,) = of_segments(alone, apply(variables, *alone[0], **alone[1]))
    assert np.abs(expected).max() > 0.1
    near(out, expected)


def test_place_in_the_pack_and_its_length_change_nothing(
  apply, debug_model, pack, samples
):
  variables = {"params": debug_model[1]}
  ahead = pack(samples)
  turned = pack(samples[::-1], L=40, S=20, G=6)
  outs = of_segments(ahead, apply(variables, *ahead[0], **ahead[1]))
  others = of_segments(turned, apply(variables, *turned[0], **turned[1]))
  for out, other in zip(outs, others[::-1], strict=True):
    near(out, other)


def sum_of_losses(model, params, counted_G, args, kwargs):
  """Each sample's mean square, summed over the samples that are counted."""
  out = model.apply({"params": params}, *args, **kwargs)
  square_BL = jnp.square(out - 1).mean(-1)
  here_BLG = args[2][..., None] == jnp.arange(1, 5)
  total = jnp.einsum("BL,BLG->BG", square_BL, here_BLG)
  return jnp.sum(counted_G * total / jnp.maximum(here_BLG.sum(1), 1))


def test_a_packed_sample_gets_the_gradient_it_gets_alone(
  debug_model, pack, samples
):
  """Of the parameters, the others' losses masked; and the sum of all."""
  model, params = debug_model
  grad = jax.jit(
    jax.grad(lambda params, *batch: sum_of_losses(model, params, *batch))
  )
  all_G, together = jnp.ones(4), pack(samples)
  alone = [grad(params, all_G, *pack([sample])) for sample in samples]
  for counted_G, expected in zip(jnp.eye(4), alone, strict=True):
    jax.tree.map(near, grad(params, counted_G, *together), expected)
  total = jax.tree.map(lambda *grads: sum(grads), *alone)
  jax.tree.map(near, grad(params, all_G, *together), total)


def test_a_pack_mate_has_exactly_no_influence(debug_model, pack, samples):
  """By gradient, with respect to tokens, time and text of the others."""
  model, params = debug_model
  (tokens, t, ids, positions), kwargs = pack(samples)
  text, text_ids = kwargs.pop("text_BSE"), kwargs["text_segment_ids_BS"]

  def own(tokens, t, text, segment):
    out = model.apply(
      {"params": params}, tokens, t, ids, positions, text_BSE=text, **kwargs
    )
    return jnp.sum(jnp.sin(out) * (ids == segment)[..., None])

  grad = jax.jit(jax.grad(own, (0, 1, 2)))
  is_touched = lambda x: (np.asarray(x) != 0).reshape(*x.shape[:2], -1).any(-1)
  for segment in (1, 2, 3, 4):
    by_tokens, by_t, by_text = map(is_touched, grad(tokens, t, text, segment))
    np.testing.assert_array_equal(by_tokens, ids == segment)
    np.testing.assert_array_equal(by_t, np.arange(1, 5)[None] == segment)
    wanted = transformer.NULL_TEXT if segment == 3 else segment
    np.testing.assert_array_equal(by_text, text_ids == wanted)


def test_padding_gives_no_nan_and_no_gradient(debug_model, pack, samples):
  """A pack with a tail, beside one that is nothing but padding."""
  model, params = debug_model
  full, empty = pack(samples[:2]), pack([])
  args, kwargs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), full, empty)
  kwargs["text_segment_ids_BS"] = kwargs["text_segment_ids_BS"].at[1].set(0)

  def loss(params, tokens):
    out = model.apply({"params": params}, tokens, *args[1:], **kwargs)
    return jnp.square(out * (args[2] > 0)[..., None]).sum(), out

  grads, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, args[0])
  chex.assert_tree_all_finite((out, grads))
  assert (np.asarray(grads[1])[np.asarray(args[2]) == 0] == 0).all()


@pytest.mark.parametrize("bias", [False, True])
def test_without_text_keys_cross_attention_adds_exactly_nothing(
  make_model, pack, samples, bias
):
  """So its parameters have no gradient, and no effect: not even biases."""
  model, params = make_model(attention_bias=bias)
  alone = pack(samples[3:])

  def out(params):
    return model.apply({"params": params}, *alone[0], **alone[1])[:, :6]

  cross = params["blocks"]["cross_attn"]
  assert ("bias" in cross["out"]) == bias
  louder = jax.tree.map(lambda x: 10 * x, cross)
  blocks = params["blocks"] | {"cross_attn": louder}
  changed = params | {"blocks": blocks}
  np.testing.assert_array_equal(jax.jit(out)(changed), jax.jit(out)(params))
  grads = jax.jit(jax.grad(lambda params: jnp.square(out(params)).sum()))(
    params
  )
  for grad in jax.tree.leaves(grads["blocks"]["cross_attn"]):
    assert (np.asarray(grad) == 0).all()


def test_a_dropped_caption_is_the_empty_one_asked_for_by_name(
  apply, debug_model, pack, samples, make_sample
):
  """And what the caption was does not matter; the class is dropped too."""
  model, params = debug_model
  variables = {"params": params}
  dropped, same = pack([samples[2]]), pack([samples[2]])
  empty = same[1]["text_BSE"][0, :1]
  named = samples[2] | {
    "text": np.asarray(empty),
    "dropped": False,
    "label": model.config.num_classes,
  }
  named = pack([named])
  out = of_segments(dropped, apply(variables, *dropped[0], **dropped[1]))
  asked = of_segments(named, apply(variables, *named[0], **named[1]))
  np.testing.assert_allclose(out[0], asked[0], rtol=1e-6, atol=1e-6)
  other = samples[2] | {"text": make_sample(8, (1, 1, 1), text=5)["text"]}
  other = pack([other | {"label": 0}])
  np.testing.assert_array_equal(
    of_segments(other, apply(variables, *other[0], **other[1]))[0], out[0]
  )


def test_a_dropped_class_is_the_last_row_of_the_table(
  debug_model, pack, samples
):
  model, params = debug_model
  args, kwargs = pack([samples[2], samples[1]])
  loss = lambda params: jnp.square(
    model.apply({"params": params}, *args, **kwargs)
  ).sum()
  table = jax.jit(jax.grad(loss))(params)["class"]["embedding"]
  used = np.flatnonzero(np.abs(np.asarray(table)).max(1)).tolist()
  # Segment 2's own, that of columns without a segment (0), and the last.
  assert len(table) == model.config.num_classes + 1
  assert used == [2, model.config.num_classes]


def test_an_unknown_class_is_a_dropped_one(apply, debug_model, pack, samples):
  variables = {"params": debug_model[1]}
  last = debug_model[0].config.num_classes
  one, two = (
    pack([samples[1] | {"label": label, "dropped": False}])
    for label in (-1, last)
  )
  np.testing.assert_array_equal(
    *(apply(variables, *args, **kwargs) for args, kwargs in (one, two))
  )


def test_one_guided_pack_holds_both_fields(apply, debug_model, pack, samples):
  """Dropping by flag, not by changing the batch: what guidance relies on."""
  variables = {"params": debug_model[1]}
  args, kwargs = pack(samples[:2])
  plain = apply(variables, *args, **kwargs)
  flags = kwargs | {"dropped_BG": jnp.array([[True, False, False, False]])}
  half = apply(variables, *args, **flags)
  first, second = (np.asarray(args[2][0]) == g for g in (1, 2))
  assert np.abs(half - plain)[0, first].max() > 1e-3
  np.testing.assert_array_equal(half[0, second], plain[0, second])
