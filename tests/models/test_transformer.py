"""The flow transformer: sizes, its start, and its layers one by one."""

import functools
import json
import pathlib
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import attention, layers, rope, transformer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def shapes_of(variant, **sizes):
  """The parameters of a variant, as shapes alone."""
  cfg = transformer.TransformerConfig(**transformer.VARIANTS[variant] | sizes)
  ints = jnp.zeros((1, 4), int)
  args = jnp.zeros((1, 4, cfg.patch_width)), jnp.zeros((1, 2)), ints
  init = functools.partial(
    transformer.Transformer(cfg).init,
    text_BSE=jnp.zeros((1, 4, cfg.text_width)),
    text_segment_ids_BS=ints,
    class_BG=jnp.zeros((1, 2), int),
  )
  return jax.eval_shape(
    init, jax.random.key(0), *args, jnp.zeros((1, 4, 3), int)
  )["params"]


@pytest.mark.parametrize(
  ("variant", "billions"),
  [
    ("1b", 0.675),
    ("2b", 2.015),
    ("8b", 8.086),
    ("2b-hd128", 2.015),
    ("8b-hd128", 8.086),
  ],
)
def test_variants_have_the_parameters_of_the_paper(variant, billions):
  """Table 1, with text of FLAN-T5 XL's width; 1B is class-conditional."""
  count = sum(x.size for x in jax.tree.leaves(shapes_of(variant)))
  assert count == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize("variant", transformer.VARIANTS)
def test_variants_split_into_heads_that_rope_can_turn(variant):
  sizes = transformer.VARIANTS[variant]
  head, rest = divmod(sizes["width"], sizes["num_heads"])
  assert rest == 0
  assert sum(rope.axis_widths(head)) == head
  if "hd128" in variant:
    assert head == 128


def test_the_parameter_trees_of_debug_are_frozen():
  """Names and shapes are what checkpoints and sharding rules read."""
  script = runpy.run_path(str(GOLDEN / "trees.py"))
  frozen = json.loads((GOLDEN / "trees.json").read_text())
  assert script["trees"]() == frozen


def fresh(**sizes):
  """A debug network as it is at its start, on a pack of two clips."""
  cfg = transformer.TransformerConfig(**transformer.VARIANTS["debug"] | sizes)
  return transformer.Transformer(cfg)


def test_another_theta_gives_another_output(make_model, pack, make_sample):
  args, kwargs = pack([make_sample(0, (2, 2, 2))])
  outs = []
  for theta in (10_000.0, 20.0):
    model, params = make_model(rope_theta=theta)  # the same parameters
    outs.append(jax.jit(model.apply)({"params": params}, *args, **kwargs))
  assert np.abs(outs[0] - outs[1])[0, :8].max() > 1e-4


@pytest.mark.parametrize(
  ("positions", "sees_the_place"), [("rope", False), ("sinusoidal", True)]
)
def test_sinusoids_tell_the_place_and_rotations_the_difference(
  make_model, pack, make_sample, positions, sees_the_place
):
  (tokens, t, ids, places), kwargs = pack([make_sample(0, (2, 2, 2))])
  model, params = make_model(rotate_cross_queries=False, positions=positions)
  apply = jax.jit(model.apply)
  one, two = (
    apply({"params": params}, tokens, t, ids, places + by, **kwargs)
    for by in (0, 3)
  )
  moved = np.abs(one - two).max() / np.abs(one).max()
  assert moved > 1e-2 if sees_the_place else moved < 1e-5


def test_at_init_the_output_is_exactly_zero(pack, make_sample):
  args, kwargs = pack([make_sample(0, (2, 2, 2)), make_sample(1, (1, 2, 3))])
  model = fresh(text_width=24, num_classes=5)
  out = jax.jit(
    lambda key: model.apply(model.init(key, *args, **kwargs), *args, **kwargs)
  )(jax.random.key(0))
  assert (np.asarray(out) == 0).all()


@pytest.mark.parametrize("text_width", [0, 24])
def test_at_init_a_block_only_adds_the_ungated_cross_attention(text_width):
  """adaLN-Zero: both gates are closed; without text it is the identity."""
  cfg = fresh(text_width=text_width).config
  ids = jnp.array([[1, 1, 2, 0]])
  pack = dict(
    one_hot_BLG=jax.nn.one_hot(ids - 1, 2),
    segment_ids_BL=ids,
    rope=rope.rope_tables(jnp.zeros((1, 4, 3), int), 16),
    text_queries_BL=ids,
    has_text_BL=jnp.array([[True, True, False, False]]),
    text_ids_BS=jnp.array([[1, 1, 1]]),
  )
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  x, text = draw(0, 1, 4, cfg.width), draw(1, 1, 3, 24)
  block = transformer.Block(cfg, attention.segment_attention)
  args = x, draw(2, 1, 2, cfg.width), text, pack
  params = block.init(jax.random.key(3), *args)["params"]
  out, _ = block.apply({"params": params}, *args)
  added = 0
  if text_width:
    h = layers.RMSNorm().apply({"params": params["cross_norm"]}, x)
    added = attention.Attention(cfg.num_heads).apply(
      {"params": params["cross_attn"]},
      *(h, text, ids, pack["text_ids_BS"], pack["rope"], None),
    )
    assert np.abs(added[0, :2]).min() > 0
    assert (np.asarray(added[0, 2:]) == 0).all()
  np.testing.assert_allclose(out, x + added, rtol=1e-6)


def loop(model, params, args, kwargs):
  """The network as the paper's list of layers, without a scan."""
  cfg = model.config
  tokens, t, ids, positions = args
  one_hot = jax.nn.one_hot(ids - 1, t.shape[1])
  queries, has_text = transformer.route_text(
    ids, kwargs["text_segment_ids_BS"], kwargs["dropped_BG"]
  )
  pack = dict(
    segment_ids_BL=ids,
    one_hot_BLG=one_hot,
    rope=rope.rope_tables(positions, cfg.width // cfg.num_heads),
    text_queries_BL=queries,
    has_text_BL=has_text,
    text_ids_BS=kwargs["text_segment_ids_BS"],
  )
  c = layers.TimestepEmbedding(cfg.width).apply({"params": params["time"]}, t)
  c += params["class"]["embedding"][kwargs["class_BG"]]
  linear = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
  x = linear("patch_in", tokens)
  for i in range(cfg.depth):
    layer = jax.tree.map(lambda p, i=i: p[i], params["blocks"])
    block = transformer.Block(cfg, attention.segment_attention)
    x, _ = block.apply({"params": layer}, x, c, kwargs["text_BSE"], pack)
  shift, scale = jnp.split(one_hot @ linear("adaln", nn.silu(c)), 2, -1)
  return linear("patch_out", layers.layer_norm(x) * (1 + scale) + shift)


def two_clips(pack, make_sample):
  return pack(
    [make_sample(0, (2, 2, 2), t=0.2), make_sample(1, (1, 3, 3), label=3)]
  )


def test_the_scan_equals_a_loop_over_blocks(debug_model, pack, make_sample):
  model, params = debug_model
  args, kwargs = two_clips(pack, make_sample)
  out = jax.jit(model.apply)({"params": params}, *args, **kwargs)
  expected = jax.jit(lambda params: loop(model, params, args, kwargs))(params)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(out, expected, atol=1e-5 * scale)


@pytest.mark.slow
def test_what_the_backward_pass_keeps_changes_nothing(
  debug_model, pack, make_sample
):
  model, params = debug_model
  args, kwargs = two_clips(pack, make_sample)

  def results(remat):
    cfg = transformer.TransformerConfig(**vars(model.config) | {"remat": remat})
    apply = transformer.Transformer(cfg).apply
    loss = lambda params: jnp.square(
      apply({"params": params}, *args, **kwargs)
    ).mean()
    return jax.jit(jax.value_and_grad(loss))(params)

  kept = results("none")
  close = lambda a, b: np.testing.assert_allclose(
    a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3)
  )
  for remat in (*transformer.REMAT, "attention,mlp", "attention,mlp:offload"):
    jax.tree.map(close, kept, results(remat))


def test_an_image_is_a_video_of_one_frame_at_any_time_origin(
  debug_model, pack, make_sample
):
  """Self-attention sees differences alone; the quirk of rotated cross-queries
  sees the place itself, and is switched off here."""
  model, params = debug_model
  cfg = vars(model.config) | {"rotate_cross_queries": False}
  model = transformer.Transformer(transformer.TransformerConfig(**cfg))
  (tokens, t, ids, positions), kwargs = pack([make_sample(0, (1, 3, 3))])
  apply = jax.jit(model.apply)
  out = apply({"params": params}, tokens, t, ids, positions, **kwargs)
  later = positions + jnp.array([5, 0, 0])
  np.testing.assert_allclose(
    apply({"params": params}, tokens, t, ids, later, **kwargs),
    out,
    atol=1e-5 * np.abs(out).max(),
  )


def test_bfloat16_products_stay_near_and_the_output_is_float32(
  debug_model, pack, make_sample
):
  model, params = debug_model
  cfg = transformer.TransformerConfig(
    **vars(model.config) | {"dtype": jnp.bfloat16}
  )
  args, kwargs = two_clips(pack, make_sample)
  out = jax.jit(model.apply)({"params": params}, *args, **kwargs)
  half = jax.jit(transformer.Transformer(cfg).apply)(
    {"params": params}, *args, **kwargs
  )
  assert half.dtype == jnp.float32
  assert np.abs(half - out).max() < 0.05 * np.abs(out).max()
