"""Attention within segments, against ten lines of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import attention

Q_IDS = np.array([[1, 1, 2, 2, 2, 5, 0], [3, 3, 3, 3, -1, 0, 0]])
K_IDS = np.array([[2, 1, 1, 0, 2], [-1, 3, 0, 3, 3]])


def plain_attention(q, k, v, q_ids, k_ids):
  out = np.zeros(q.shape)
  for b, i, n in np.ndindex(q.shape[:3]):
    keys = (k_ids[b] == q_ids[b, i]) & (q_ids[b, i] != 0)
    if keys.any():
      logits = k[b, keys, n] @ q[b, i, n] / np.sqrt(q.shape[-1])
      weights = np.exp(logits - logits.max())
      out[b, i, n] = weights @ v[b, keys, n] / weights.sum()
  return out


def inputs(N=3, K=4):
  rng = np.random.default_rng(0)
  draw = lambda n: rng.standard_normal((2, n, N, K), np.float32)
  return draw(Q_IDS.shape[1]), draw(K_IDS.shape[1]), draw(K_IDS.shape[1])


def run(qkv, chunk=1024):
  q, k, v = map(jnp.asarray, qkv)
  ids = jnp.asarray(Q_IDS), jnp.asarray(K_IDS)
  return attention.segment_attention(q, k, v, *ids, chunk=chunk)


def test_attention_is_the_softmax_within_segments():
  qkv = inputs()
  expected = plain_attention(*qkv, Q_IDS, K_IDS)
  np.testing.assert_allclose(run(qkv), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 100])
def test_the_walk_by_chunks_equals_the_batched_product(chunk, monkeypatch):
  """Values and gradients; 3 and 4 do not divide the 7 queries."""
  weights = np.random.default_rng(1).standard_normal((2, 7, 3, 4))
  loss = lambda qkv: (run(qkv, chunk) * weights).sum()
  few = jax.jit(jax.value_and_grad(loss))(inputs())
  monkeypatch.setattr(attention, "FEW_LOGITS", 0)
  walked = jax.jit(jax.value_and_grad(lambda qkv: loss(qkv)))(inputs())
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, few, walked)


@pytest.mark.parametrize("few", [0, 1 << 22])
def test_queries_without_keys_are_exactly_zero_with_zero_gradients(
  few, monkeypatch
):
  """Padding, and a segment (5) whose keys are missing; logits are huge."""
  monkeypatch.setattr(attention, "FEW_LOGITS", few)
  lonely = np.array([[0] * 5 + [1, 1], [0] * 4 + [0, 1, 1]], bool)
  lonely[1, 4] = False  # the empty caption (-1) is a segment as any other
  q, k, v = inputs()
  q, k = 1e3 * q, 1e3 * k
  out = run((q, k, v))
  assert (np.asarray(out)[lonely] == 0).all()
  assert (np.asarray(out)[~lonely] != 0).all()
  loss = lambda qkv: jnp.square(run(qkv)).sum()
  grad_q, grad_k, grad_v = jax.grad(loss)((q, k, v))
  for grad in (grad_q, grad_k, grad_v):
    assert np.isfinite(grad).all()
  assert (np.asarray(grad_q)[lonely] == 0).all()
  assert (np.asarray(grad_v)[K_IDS == 0] == 0).all()


@pytest.mark.parametrize("few", [0, 1 << 22])
def test_another_segment_has_exactly_no_influence(few, monkeypatch):
  monkeypatch.setattr(attention, "FEW_LOGITS", few)
  q, k, v = inputs()
  first = lambda k, v: jnp.square(run((q, k, v))[0, :2]).sum()  # segment 1
  for grad in jax.grad(first, (0, 1))(k, v):
    touched = np.abs(np.asarray(grad)).max((2, 3)) > 0
    np.testing.assert_array_equal(touched, [K_IDS[0] == 1, np.zeros(5)])
  # Not even the infinite reach across: not 0 * inf, but left out.
  changed = run((q, np.where(K_IDS == 2, 1e30, 1)[..., None, None] * k, v))
  np.testing.assert_array_equal(changed[0, :2], run((q, k, v))[0, :2])


def test_half_precision_stays_near_and_keeps_its_type():
  qkv = inputs()
  half = run([x.astype(jnp.bfloat16) for x in qkv])
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), run(qkv), atol=0.03)


def both(qkv, ids, chunk, monkeypatch):
  """Output, log-sum-exp and gradients, by one product and by chunks."""
  qkv = [jnp.asarray(x) for x in qkv]
  rng = np.random.default_rng(1)
  weights = [
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in (qkv[0].shape, qkv[0].shape[:3])
  ]

  def results(few):
    monkeypatch.setattr(attention, "FEW_LOGITS", few)

    def loss(q, k, v):
      out, lse = attention.attend(q, k, v, *ids, chunk=chunk)
      seen = jnp.where(lse > attention.NOTHING, lse, 0)
      return (out * weights[0]).sum() + (seen * weights[1]).sum(), (out, lse)

    grads, found = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return [np.asarray(x, np.float32) for x in (*found, *grads)]

  return results(1 << 22), results(0)


def long_inputs(lengths, S=None):
  """Segments in a row, then padding: 61 queries, and as many keys or `S`."""
  ids = np.repeat(1 + np.arange(len(lengths)), lengths)
  q_ids = np.pad(ids, (0, 61 - len(ids)))[None]
  k_ids = q_ids if S is None else np.arange(S)[None] % 5
  rng = np.random.default_rng(2)
  draw = lambda n: rng.standard_normal((1, n, 2, 8), np.float32)
  n = k_ids.shape[1]
  return [draw(61), draw(n), draw(n)], (jnp.asarray(q_ids), jnp.asarray(k_ids))


LAYOUTS = {  # and a chunk
  "whole": (([61],), 16),
  "packed": (([5, 20, 11, 3, 15],), 8),
  "padding alone": (([],), 61),
  "text": (([5, 20, 11, 3, 15], 29), 16),  # keys of a segment are far apart
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_log_sums_and_gradients_of_both_walks_agree(layout, monkeypatch):
  args, chunk = LAYOUTS[layout]
  found = both(*long_inputs(*args), chunk, monkeypatch)
  for few, walked in zip(*found, strict=True):
    np.testing.assert_allclose(few, walked, rtol=1e-4, atol=1e-5)


def test_the_log_sum_is_of_the_logits(monkeypatch):
  (q, k, v), ids = long_inputs([5, 20, 11])
  same = (ids[0][0, :, None] == ids[1][0]) & (ids[0][0, :, None] != 0)
  logits = np.einsum("LNK,SNK->LSN", q[0], k[0]) / np.sqrt(8)
  total = np.where(same[..., None], np.exp(logits), 0).sum(1)
  expected = np.log(total, where=total > 0, out=np.full(total.shape, -1e30))
  for found in both((q, k, v), ids, 8, monkeypatch):
    np.testing.assert_allclose(found[1][0], expected, rtol=1e-4, atol=1e-5)


def test_chunks_in_half_precision_stay_near_the_batched_product(monkeypatch):
  qkv, ids = long_inputs([5, 20, 11, 3, 15])
  half = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
  for few, walked in zip(*both(half, ids, 16, monkeypatch), strict=True):
    np.testing.assert_allclose(few, walked, atol=0.05)
  monkeypatch.setattr(attention, "FEW_LOGITS", 0)
  out, lse = attention.attend(*half, *ids)
  assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)


def test_no_array_of_a_long_pack_is_as_large_as_its_logits(monkeypatch):
  monkeypatch.setattr(attention, "FEW_LOGITS", 0)
  L = 4096
  x, ids = jnp.zeros((1, L, 1, 16)), jnp.ones((1, L), jnp.int32)
  attend = attention.segment_attention
  loss = lambda q, k, v: attend(q, k, v, ids, ids, chunk=512).sum()
  step = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
  assert step.memory_analysis().temp_size_in_bytes < 4 * L * L / 2


def test_chunks_that_share_no_segment_are_passed_over():
  """Four chunks of queries; keys in two blocks of five."""
  q_ids = jnp.array([[1, 1], [1, 2], [3, 0], [0, 0]], jnp.int32)
  none = attention.NO_ID
  k_ids = jnp.array([[1, 1, 1, 2, 2], [2, 4, none, none, none]], jnp.int32)
  first, end = attention._reach(q_ids, k_ids)
  blocks = [list(range(*x)) for x in zip(first, end, strict=True)]
  assert blocks == [[0], [0, 1], [1], []]


def test_queries_and_keys_are_normalised_before_the_split_into_heads():
  """The scale of one head's queries survives; the scale of all does not."""
  layer = attention.Attention(num_heads=2)
  x = jax.random.normal(jax.random.key(0), (1, 5, 8))
  ids = jnp.ones((1, 5), int)
  params = layer.init(jax.random.key(1), x, x, ids, ids, None, None)["params"]
  apply = lambda params: layer.apply(
    {"params": params}, x, x, ids, ids, None, None
  )
  scaled = lambda by: params | {"q": {"kernel": params["q"]["kernel"] * by}}
  np.testing.assert_allclose(
    apply(scaled(100.0)), apply(params), rtol=1e-3, atol=1e-5
  )
  one_head = jnp.where(jnp.arange(8) < 4, 100.0, 1.0)
  assert np.abs(apply(scaled(one_head)) - apply(params)).max() > 0.01
