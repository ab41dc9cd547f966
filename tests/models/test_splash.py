"""TPU kernels, interpreted, against the reference, and the blocks they run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax import costs
from goku_jax.models import attention, kernels, splash
from goku_jax.typing import UserError

B, N, K = 2, 2, 64


def ids_of(*packs, length):
  """Segments by their lengths, one after the other, then padding."""
  ids = np.zeros((len(packs), length), np.int32)
  for row, sizes in zip(ids, packs, strict=True):
    found = np.repeat(1 + np.arange(len(sizes)), sizes)
    row[: len(found)] = found
  return ids


CASES = {  # ids of queries and of keys
  "packed": [ids_of((100, 30, 200), (256, 128), length=384)] * 2,
  "padded": [ids_of((40,), (), length=256)] * 2,
  "whole": [np.ones((B, 256), np.int32)] * 2,
  "odd": [ids_of((100, 51), (151,), length=151)] * 2,
  # Captions dropped look for -1, and one has no key at all.
  "text": [
    np.repeat(np.array([[2, -1, 1, 0], [-1, 3, 4, 2]], np.int32), 64, 1),
    np.concatenate(
      [-np.ones((B, 1), int), ids_of((20, 9), (5, 30), length=40)], 1
    ),
  ],
}


def results(attend, ids, dtype):
  rng = np.random.default_rng(0)
  q_ids, k_ids = (jnp.asarray(x, jnp.int32) for x in ids)
  draw = lambda n: jnp.asarray(rng.standard_normal((B, n, N, K)), dtype)
  qkv = [draw(x.shape[1]) for x in (q_ids, k_ids, k_ids)]

  def loss(q, k, v):
    out, lse = attend(q, k, v, q_ids, k_ids)
    seen = jnp.where(lse > attention.NOTHING, lse, 0)
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(seen)), (out, lse)

  grads, outs = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
  return [np.asarray(x, np.float32) for x in (*outs, *grads)]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_reference(name):
  kernel = functools.partial(
    splash.attend, block=128, key_block=256, interpret=True
  )
  found = results(kernel, CASES[name], jnp.float32)
  for one, two in zip(
    found, results(attention.attend, CASES[name], jnp.float32), strict=True
  ):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=3e-5)


def test_queries_without_keys_are_exactly_zero_with_zero_gradients():
  kernel = functools.partial(
    splash.attend, block=128, key_block=256, interpret=True
  )
  out, lse, dq, _, _ = results(kernel, CASES["padded"], jnp.float32)
  assert (out[0, 40:] == 0).all()
  assert (out[1] == 0).all()
  assert (dq[1] == 0).all()
  assert (lse[1] == attention.NOTHING).all()


@pytest.mark.parametrize("block", [32, 64])
def test_blocks_that_meet_are_those_that_costs_count(block):
  sizes = (100, 30, 200, 7, 7, 7)
  ids = ids_of(sizes, length=384)[0]
  meet = np.asarray(
    attention.meeting(*[jnp.asarray(ids).reshape(-1, block)] * 2)
  )
  exact = np.zeros_like(meet)
  for i, j in np.argwhere((ids[:, None] == ids) & (ids != 0)):
    exact[i // block, j // block] = True
  np.testing.assert_array_equal(meet, exact)
  assert meet.sum() == costs.attention_blocks(
    sizes, block_q=block, block_k=block
  )


def test_a_skipped_pair_fetches_nothing_new():
  meet = jnp.asarray([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
  along_keys = splash._table(meet, 1).data_next[0]
  np.testing.assert_array_equal(
    along_keys, [[1, 1, 2, 2, 2], [3, 3, 3, 3, 3], [0, 0, 0, 0, 0]]
  )
  along_queries = splash._table(meet, 0).data_next[0]
  np.testing.assert_array_equal(along_queries[:, 3], [1, 1, 1])


def test_kernels_are_chosen_by_name_and_platform():
  choose = functools.partial(
    kernels.choose, block=256, key_block=512, segments=4
  )
  assert choose("auto") is attention.attend
  assert choose("chunked", platform="tpu") is attention.attend
  chosen = choose("auto", platform="tpu")
  assert (chosen.func, chosen.keywords) == (
    splash.attend,
    {"block": 256, "key_block": 512},
  )
  for name, options, says in (
    ("fast", {}, "kernel='fast' is not one of auto, chunked"),
    ("splash", {}, "splash runs on TPUs, and this is a cpu"),
    ("auto", dict(platform="tpu", block=100), "block=100: set a multiple of 1"),
  ):
    with pytest.raises(UserError, match=says):
      choose(name, **options)
