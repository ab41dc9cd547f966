"""GPU attention: runs, cuts and lowering; on a GPU also cuDNN's own kernels.

Here nothing runs cuDNN. What is around it is held to the reference with a
double that reads cuDNN's tables and leaves noughts in nothing: what no segment
holds is not a number, in outputs and in gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import attention, cudnn_attention, kernels
from goku_jax.typing import UserError

B, N, K, SEGMENTS = 2, 2, 64, 6


def ids_of(*packs, length):
  """Segments by their lengths, one after the other, then padding."""
  ids = np.zeros((len(packs), length), np.int32)
  for row, sizes in zip(ids, packs, strict=True):
    found = np.repeat(1 + np.arange(len(sizes)), sizes)
    row[: len(found)] = found
  return ids


CASES = {  # ids of queries and of keys
  "packed": [ids_of((100, 30, 200, 140), (256, 256), length=512)] * 2,
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


def double(
  q, k, v, *, q_seqlen, kv_seqlen, q_offsets=None, kv_offsets=None, **_
):
  """cuDNN's attention by its tables, with nothing defined outside of them."""

  def ids(start, length, size):
    places = jnp.arange(size)
    if start is None:
      return (places < length[:, None]).astype(jnp.int32)
    is_BGL = (places >= start[:, :-1, None]) & (
      places < (start[:, :-1] + length)[..., None]
    )
    is_BGL &= (length > 0)[..., None]
    return (is_BGL * (1 + jnp.arange(is_BGL.shape[1]))[:, None]).sum(1)

  assert q.shape[1] % 2 == k.shape[1] % 2 == 0
  q_ids = ids(q_offsets, q_seqlen, q.shape[1])
  k_ids = ids(kv_offsets, kv_seqlen, k.shape[1])
  held = lambda ids: (ids > 0)[..., None, None]

  @jax.custom_vjp
  def run(q, k, v):
    out = attention.attend(q, k, v, q_ids, k_ids)[0]
    return jnp.where(held(q_ids), out, jnp.nan)

  def forward(*qkv):
    plain = lambda *qkv: attention.attend(*qkv, q_ids, k_ids)[0]
    return run(*qkv), jax.vjp(plain, *qkv)[1]

  def backward(pull, d_out):
    dq, dk, dv = pull(d_out)
    cut = lambda x, ids: jnp.where(held(ids), x, jnp.nan)
    return cut(dq, q_ids), cut(dk, k_ids), cut(dv, k_ids)

  run.defvjp(forward, backward)
  return run(q, k, v)


@pytest.fixture
def doubled(monkeypatch):
  monkeypatch.setattr(cudnn_attention.cudnn, "dot_product_attention", double)
  monkeypatch.setattr(cudnn_attention, "TYPES", (jnp.float32,))


attend = functools.partial(cudnn_attention.attend, segments=SEGMENTS)


def results(attend, ids, dtype=jnp.float32):
  """Output and gradients, of random arrays."""
  rng = np.random.default_rng(0)
  q_ids, k_ids = (jnp.asarray(x, jnp.int32) for x in ids)
  draw = lambda n: jnp.asarray(rng.standard_normal((B, n, N, K)), dtype)
  qkv = [draw(x.shape[1]) for x in (q_ids, k_ids, k_ids)]

  def loss(qkv):
    out = attend(*qkv, q_ids, k_ids)[0]
    return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

  grads, out = jax.jit(jax.grad(loss, has_aux=True))(qkv)
  return [np.asarray(x, np.float32) for x in (out, *grads)]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_reference(name, doubled):
  found = results(attend, CASES[name])
  wanted = results(attention.attend, CASES[name])
  for one, two in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=3e-5)


def test_packs_of_one_segment_need_no_table(doubled):
  alone = functools.partial(cudnn_attention.attend, segments=1)
  ids = np.stack([np.repeat([1, 0], [40, 11]), np.zeros(51)])
  found, wanted = (results(fn, [ids] * 2) for fn in (alone, attention.attend))
  for one, two in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=3e-5)
  late = np.stack([np.repeat([0, 1], [11, 40]), ids[0]])
  out, *_ = results(alone, [late] * 2)
  assert np.isnan(out[0]).all()
  assert np.isfinite(out[1]).all()


@pytest.mark.parametrize(
  "wrong",
  [
    np.repeat([1, 2, 1], 20),  # in two runs
    np.repeat([1, SEGMENTS + 1, 0], 20),  # more than there may be
  ],
)
def test_a_pack_that_is_no_row_of_runs_gives_nan_alone(wrong, doubled):
  ids = np.stack([wrong, np.repeat([1, 2, 0], 20)]).astype(np.int32)
  out, *_ = results(attend, [ids] * 2)
  assert np.isnan(out[0]).all()
  assert np.isfinite(out[1]).all()


def test_two_keys_of_dropped_captions_give_nan(doubled):
  queries = ids_of((30, 20), (50,), length=50)
  keys = ids_of((8, 4), (6,), length=14)
  keys[1, 10:12] = -1
  out, *_ = results(attend, [queries, keys])
  assert np.isfinite(out[0]).all()
  assert np.isnan(out[1]).all()


def test_runs_are_found_whatever_their_order():
  ids = jnp.asarray([[2, 2, -1, 1, 0, 0], [3, 0, 0, 1, 1, 1]])
  start, length, whole = cudnn_attention.find_runs(ids, 3)
  np.testing.assert_array_equal(length, [[1, 2, 0], [3, 0, 1]])
  np.testing.assert_array_equal(start[0, :2], [3, 0])
  np.testing.assert_array_equal(start[1, ::2], [3, 0])
  assert whole.all()


@pytest.mark.parametrize("width", [64, 128])
def test_it_lowers_for_cuda_without_pairs_and_keeps_what_is_named(
  width, monkeypatch
):
  # What asks the machine for its GPU; what lowers is true.
  probes = dict(
    check_cudnn_version=lambda: 91900,
    check_compute_capability=lambda _: True,
    is_cuda_compute_capability_equal=lambda _: False,
  )
  for name, answer in probes.items():
    monkeypatch.setattr(cudnn_attention.cudnn, name, answer)
  L, S = 1000, 1900
  policy = jax.checkpoint_policies.save_only_these_names("attention")
  kept = jax.checkpoint(attend, policy=policy)
  loss = lambda *args: kept(*args)[0].astype(jnp.float32).sum()
  array = lambda n: jax.ShapeDtypeStruct((B, n, N, width), jnp.bfloat16)
  ids = lambda n: jax.ShapeDtypeStruct((B, n), jnp.int32)
  args = array(L), array(S), array(S), ids(L), ids(S)
  grad = jax.jit(jax.grad(loss, (0, 1, 2)))
  text = grad.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
  calls = [x for x in text.splitlines() if "custom_call @__cudnn" in x]
  assert len(calls) == 2  # forward once, and backward
  assert f"{L}x{S}x" not in text
  _, pull = jax.eval_shape(
    lambda *args: jax.vjp(loss, *args[:3], *args[3:]), *args
  )
  large = [
    x.shape for x in jax.tree.leaves(pull) if x.size >= B * L * N * width
  ]
  assert sorted(large) == sorted([x.shape for x in (*args[:3], args[0])])


def test_other_types_and_machines_are_refused():
  with pytest.raises(UserError, match="does not take float32: set auto or"):
    results(attend, CASES["whole"])
  choose = functools.partial(
    kernels.choose, block=256, key_block=512, segments=SEGMENTS
  )
  for platform in (None, "tpu"):
    with pytest.raises(UserError, match="cudnn runs on NVIDIA's GPUs from"):
      choose("cudnn", platform=platform)


@pytest.mark.device
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_cudnn_equals_the_reference(name):
  choose = functools.partial(
    kernels.choose, block=256, key_block=512, segments=SEGMENTS
  )
  kernels_here = [choose("cudnn"), choose("auto")]
  if name in ("padded", "whole"):
    kernels_here.append(choose("cudnn", segments=1))
  for attend in kernels_here:
    found = results(attend, CASES[name], jnp.bfloat16)
    wanted = results(attention.attend, CASES[name], jnp.bfloat16)
    for one, two in zip(found, wanted, strict=True):
      np.testing.assert_allclose(one, two, rtol=0.02, atol=0.03)
