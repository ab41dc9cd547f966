"""T5's encoder: what padding, neighbours and dtypes may change, and buckets."""

import dataclasses
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import t5

CONFIG = t5.T5Config(
  vocab_size=50, width=32, depth=3, num_heads=4, head_width=6, mlp_width=40
)


def make_params(fill, config=CONFIG):
  return fill(t5.abstract_params(t5.T5Encoder(config)))


def encoder(params, config=CONFIG):
  model = t5.T5Encoder(config)
  return jax.jit(lambda *args: model.apply({"params": params}, *args))


@pytest.fixture(scope="module")
def encode(fill):
  return encoder(make_params(fill))


def text_of(*lengths, S=40, seed=0):
  """Random ids everywhere, padding too, and the mask of the first tokens."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(3, CONFIG.vocab_size, (len(lengths), S), np.int32)
  return jnp.asarray(ids), jnp.arange(S) < jnp.array(lengths)[:, None]


def test_what_stands_under_the_mask_changes_nothing_and_comes_back_zero(encode):
  ids, mask = text_of(1, 17, 40)
  out = encode(ids, mask)
  others = jnp.where(mask, ids, (ids + 7) % CONFIG.vocab_size)
  np.testing.assert_array_equal(encode(others, mask), out)
  np.testing.assert_array_equal(out == 0, ~np.broadcast_to(
    mask[..., None], out.shape
  ))  # fmt: skip


def test_a_caption_gets_in_company_and_padded_what_it_gets_alone(encode):
  ids, mask = text_of(3, 9, 26)
  together = encode(ids, mask)
  for i, n in enumerate((3, 9, 26)):
    alone = encode(ids[i : i + 1, :n], mask[i : i + 1, :n])
    np.testing.assert_allclose(together[i, :n], alone[0], rtol=0, atol=1e-5)


def test_a_row_of_padding_alone_is_zero(encode):
  np.testing.assert_array_equal(encode(*text_of(0)), 0)


def test_the_order_of_tokens_and_the_side_they_lie_on_count(encode):
  ids, mask = text_of(8, S=8)
  out, turned = encode(ids, mask), encode(ids[:, ::-1], mask)[:, ::-1]
  assert np.abs(out - turned).max() > 0.01


@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (8, 20), (16, 300)])
def test_buckets_are_single_distances_and_then_powers(buckets, far):
  """Edges in exact fractions: gap >= single (far / single)^(k / wide)."""
  half, single = buckets // 2, buckets // 4
  wide = half - single

  def row(gap):
    if gap < single:
      return gap
    reach, grow = (
      fractions.Fraction(gap, single),
      fractions.Fraction(far, single),
    )
    steps = [k for k in range(wide) if reach**wide >= grow**k]
    return single + max(steps)

  distance = np.arange(-600, 601)
  expected = [row(abs(d)) + (half if d > 0 else 0) for d in distance.tolist()]
  found = t5.bucket_of(distance, buckets, far)
  np.testing.assert_array_equal(found, expected)
  assert set(found) == set(range(buckets)) - {half}  # no key is 0 ahead


def test_a_query_finds_the_bias_of_its_distance_to_each_key():
  module = t5.DistanceBias(CONFIG)
  table = np.random.default_rng(0).standard_normal((32, 4), np.float32)
  bias = module.apply({"params": {"bias": jnp.asarray(table)}}, 200)
  for query, key in ((0, 0), (5, 2), (2, 5), (199, 0), (0, 199), (30, 61)):
    (row,) = t5.bucket_of(np.array([key - query]), 32, 128)
    np.testing.assert_array_equal(bias[:, query, key], table[row])


def test_bfloat16_is_close_to_float32(fill, encode):
  config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16)
  text = text_of(40, 12)
  out, exact = encoder(make_params(fill), config)(*text), encode(*text)
  assert out.dtype == jnp.float32
  gap = np.abs(out - exact).max() / np.abs(exact).max()
  assert 1e-5 < gap < 0.03


def test_the_residual_stream_of_bfloat16_keeps_float32(fill):
  """Values a thousand times the layers' own are not rounded to 8 bits."""
  params = make_params(fill)
  params["pieces"]["embedding"] *= 1000
  text = text_of(40)
  exact = encoder(params)(*text)
  config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16)
  gap = np.abs(encoder(params, config)(*text) - exact).max()
  assert gap < 2e-4 * np.abs(exact).max()
