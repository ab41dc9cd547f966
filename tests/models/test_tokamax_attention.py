"""GPU attention: runs, gradients and lowering; on a GPU also the true kernels.

Here nothing runs tokamax's Hopper kernels. What is around them is held to the
reference with its Triton ones, interpreted, which take the same runs and make
their gradients of the same residuals; the Hopper ones are lowered for CUDA.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from goku_jax.models import attention, kernels, tokamax_attention
from goku_jax.typing import UserError

# tokamax calls Pallas by names that newer JAX has others for.
pytestmark = pytest.mark.filterwarnings(
  "ignore:.*deprecated:DeprecationWarning"
)

B, N, K = 2, 2, 64


def ids_of(*packs, length):
  """Segments by their lengths, one after the other, then padding."""
  ids = np.zeros((len(packs), length), np.int32)
  for row, sizes in zip(ids, packs, strict=True):
    found = np.repeat(1 + np.arange(len(sizes)), sizes)
    row[: len(found)] = found
  return ids


def part_of(ids, start, end):
  return ids[:, start:end]


PACKED = ids_of((100, 30, 200, 140), (256, 256), length=512)
CASES = {  # ids of queries and of keys
  "packed": [PACKED[:, :256]] * 2,
  "padded": [ids_of((40,), (), length=256)] * 2,
  "whole": [np.ones((B, 256), np.int32)] * 2,
  # What a step of a ring sees: another part of the pack.
  "ring": [PACKED[:, :256], PACKED[:, 256:]],
  # Captions dropped look for -1, and one has no key at all.
  "text": [
    np.repeat(np.array([[2, -1, 1, 0], [-1, 3, 4, 2]], np.int32), 64, 1),
    np.concatenate(
      [-np.ones((B, 1), int), ids_of((20, 9), (5, 30), length=40)], 1
    ),
  ],
}
ODD = [ids_of((100, 51), (151,), length=151)] * 2


def triton():
  """Forward and backward of tokamax's Triton kernels, as `hopper` has them.

  Its backward is given the mask of L x S that we have no memory for.
  """
  from tokamax._src.ops.attention import pallas_triton, pallas_triton_vjp

  exact = jax.lax.DotAlgorithmPreset.F32_F32_F32
  common = dict(
    dropout_rate=0.0,
    logits_dtype=jnp.dtype(jnp.float32),
    logits_scale=K**-0.5,
    logits_soft_cap=None,
    is_causal=False,
    q_k_dot_precision=exact,
    weights_v_dot_precision=exact,
  )

  def forward(q, k, v, *runs):
    out, (top, total) = pallas_triton._fwd(
      *(q, k, v, *[None] * 5, *runs),
      use_base2=False,
      use_stable_softmax=True,
      normalize_output=True,
      return_residuals=True,
      config=pallas_triton.Config(
        block_q=128, block_k=64, num_stages=2, num_warps=4
      ),
      **common,
    )
    return out, top + jnp.log(total)

  def backward(q, k, v, lse, out, d_out, begin, end):
    places = jnp.arange(len(k))
    mask = (places >= begin[..., None]) & (places < end[..., None])
    return pallas_triton_vjp._bwd(
      *(q, k, v, None, mask, None, (lse, jnp.ones_like(lse)), out, d_out),
      ds_dtype=None,
      config=pallas_triton_vjp.Config(
        block_m1=64,
        block_n1=64,
        block_m2=64,
        block_n2=64,
        num_stages=2,
        num_warps=4,
      ),
      **common,
    )[:3]

  return forward, backward


@pytest.fixture(scope="module")
def interpreted():
  """`attend` by Triton kernels that Pallas interprets.

  The interpreter knows a program's place outside of loops only, so that it is
  asked once, at the start.
  """
  call, program_id = pl.pallas_call, pl.program_id

  def interpret(kernel, *args, **kwargs):
    def run(*refs):
      known = {axis: program_id(axis) for axis in (0, 1)}
      place = lambda i: known[i] if i in known else program_id(i)
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "program_id", place)
        return kernel(*refs)

    return call(run, *args, interpret=True, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pl, "pallas_call", interpret)
    yield functools.partial(tokamax_attention.attend, kernels=triton())


@functools.cache
def step(attend, of_lse):
  """Jitted gradients and outputs, compiled once for all cases of a shape."""

  def loss(qkv, q_ids, k_ids):
    out, lse = attend(*qkv, q_ids, k_ids)
    seen = jnp.where(lse > attention.NOTHING, lse, 0)
    more = jnp.sum(jnp.cos(seen)) if of_lse else 0
    return jnp.sum(jnp.sin(out.astype(jnp.float32))) + more, (out, lse)

  return jax.jit(jax.grad(loss, has_aux=True))


def results(attend, ids, dtype=jnp.float32, *, of_lse=True):
  rng = np.random.default_rng(0)
  q_ids, k_ids = (jnp.asarray(x, jnp.int32) for x in ids)
  draw = lambda n: jnp.asarray(rng.standard_normal((B, n, N, K)), dtype)
  qkv = [draw(x.shape[1]) for x in (q_ids, k_ids, k_ids)]
  grads, outs = step(attend, of_lse)(qkv, q_ids, k_ids)
  return [np.asarray(x, np.float32) for x in (*outs, *grads)]


def check_equal(found, wanted, **tolerance):
  for one, two in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, two, **tolerance)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_reference(name, interpreted):
  found = results(interpreted, CASES[name])
  wanted = results(attention.attend, CASES[name])
  check_equal(found, wanted, rtol=1e-4, atol=3e-5)


def test_odd_lengths_and_a_log_sum_exp_without_use_make_no_difference(
  interpreted,
):
  found = results(interpreted, ODD, of_lse=False)
  wanted = results(attention.attend, ODD, of_lse=False)
  check_equal(found, wanted, rtol=1e-4, atol=3e-5)


def test_queries_without_keys_are_exactly_zero_with_zero_gradients(interpreted):
  out, lse, dq, _, _ = results(interpreted, CASES["padded"])
  assert (out[0, 40:] == 0).all()
  assert (out[1] == 0).all()
  assert (dq[1] == 0).all()
  assert (lse[1] == attention.NOTHING).all()


def test_a_pack_whose_ids_fall_gives_nan_and_leaves_the_others(interpreted):
  ids = ids_of((100, 56), (100, 56), length=256)
  ids[0, 200:] = 1  # the first segment goes on
  out, lse, *_ = results(interpreted, [ids] * 2)
  assert np.isnan(out[0]).all()
  assert np.isnan(lse[0]).all()
  assert np.isfinite(out[1]).all()


def test_padding_meets_an_empty_run_at_the_end_of_the_last_segment():
  ids = jnp.asarray([1, 1, 2, 2, 2, 0, 0])
  begin, end, rises = tokamax_attention._runs(ids, ids)
  np.testing.assert_array_equal(begin, [0, 0, 2, 2, 2, 5, 5])
  np.testing.assert_array_equal(end, [2, 2, 5, 5, 5, 5, 5])
  assert rises


@pytest.mark.parametrize(("width", "of_lse"), [(64, True), (128, False)])
def test_the_kernels_lower_for_cuda_without_an_array_of_all_pairs(
  width, of_lse
):
  L, S = 1000, 1900
  policy = jax.checkpoint_policies.save_only_these_names("attention")
  attend = jax.checkpoint(tokamax_attention.attend, policy=policy)

  def loss(*args):
    out, lse = attend(*args)
    return out.astype(jnp.float32).sum() + (lse.sum() if of_lse else 0)

  array = lambda n: jax.ShapeDtypeStruct((B, n, N, width), jnp.bfloat16)
  ids = lambda n: jax.ShapeDtypeStruct((B, n), jnp.int32)
  grad = jax.jit(jax.grad(loss, (0, 1, 2)))
  text = (
    grad.trace(array(L), array(S), array(S), ids(L), ids(S))
    .lower(lowering_platforms=("cuda",))
    .as_text()
  )
  calls = [x for x in text.splitlines() if "custom_call @mosaic_gpu" in x]
  assert len(calls) == 3  # forward once, dq, dkv
  assert "1024x1920x" not in text


def test_other_types_and_machines_are_refused():
  with pytest.raises(UserError, match="does not take float32: set auto or"):
    results(tokamax_attention.attend, CASES["whole"])
  choose = functools.partial(kernels.choose, block=256, key_block=512)
  with pytest.raises(UserError, match="tokamax runs on Hopper GPUs, and this"):
    choose("tokamax")
  with pytest.raises(UserError, match="tokamax runs on Hopper GPUs, and this"):
    choose("tokamax", platform="tpu")


@pytest.mark.device
@pytest.mark.parametrize("name", CASES)
def test_on_a_hopper_gpu_its_kernels_equal_the_reference(name):
  attend = kernels.choose("tokamax", block=256, key_block=512)
  found = results(attend, CASES[name], jnp.bfloat16)
  wanted = results(attention.attend, CASES[name], jnp.bfloat16)
  check_equal(found, wanted, rtol=0.02, atol=0.03)
