"""The byte encoder: captions are packed, and see nothing but themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import text

CONFIG = text.TextConfig(width=16, depth=2, num_heads=2)
IDS = jnp.array([[256, 7, 1 << 24, 0x61626364, 256, 9, 256, 0]])
SEGMENTS = jnp.array([[-1, 1, 1, 1, 1, 2, 2, 0]])
POSITIONS = jnp.array([[0, 0, 1, 2, 3, 0, 1, 0]])


@pytest.fixture(scope="module")
def encode(fill):
  model = text.ByteEncoder(CONFIG)
  init = jax.eval_shape(model.init, jax.random.key(0), IDS, SEGMENTS, POSITIONS)
  params = fill(init["params"])
  return jax.jit(lambda *args: model.apply({"params": params}, *args))


def test_a_packed_caption_gets_the_embedding_it_gets_alone(encode):
  together = encode(IDS, SEGMENTS, POSITIONS)
  for segment in (-1, 1, 2):
    here = np.flatnonzero(SEGMENTS[0] == segment)
    alone = encode(*(x[:, here] for x in (IDS, SEGMENTS, POSITIONS)))
    np.testing.assert_allclose(together[:, here], alone, rtol=1e-5, atol=1e-5)


def test_another_caption_changes_nothing(encode):
  changed = encode(IDS.at[0, 5].set(1234567), SEGMENTS, POSITIONS)
  out = encode(IDS, SEGMENTS, POSITIONS)
  np.testing.assert_array_equal(changed[0, :5], out[0, :5])
  assert np.abs(changed[0, 5:7] - out[0, 5:7]).min() > 0


@pytest.mark.parametrize("byte", range(4))
def test_every_byte_of_a_piece_and_its_place_count(encode, byte):
  """Up to the highest byte, whose top bit makes the number negative."""
  pieces = [0x01010101 + (k << (8 * byte)) for k in (0, 1, 0x7E)]
  ids = jnp.array([[p] for p in pieces], jnp.int32)
  ones, zeros = jnp.ones((3, 1), int), jnp.zeros((3, 1), int)
  rows = encode(ids, ones, zeros)[:, 0]
  assert len(np.unique(rows, axis=0)) == 3
  swapped = encode(jnp.array([[0x0102], [0x0201]]), ones[:2], zeros[:2])
  assert np.abs(swapped[0] - swapped[1]).max() > 0.01


def test_the_order_of_pieces_counts(encode):
  ids = jnp.array([[5, 6], [6, 5]])
  ones = jnp.ones((2, 2), int)
  out = encode(ids, ones, jnp.array([[0, 1], [0, 1]]))
  assert np.abs(out[0, ::-1] - out[1]).max() > 0.01


def test_padding_is_finite(encode):
  assert np.isfinite(encode(IDS, 0 * SEGMENTS, POSITIONS)).all()
