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
