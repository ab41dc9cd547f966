"""Attention within segments by tokamax's kernels, for NVIDIA's Hopper GPUs.

The keys of a segment lie in one run, so that two numbers a query say which it
meets: the kernels mask by them, never by an array of L x S. Forward, blocks of
keys outside the runs of a block of queries are skipped. Backward, nothing is:
tokamax's dq and dkv kernels run every pair of blocks of a pack.

The kernels are called below their public wrapper, which takes neither runs nor
a gradient of the log-sum-exp.

Letters: B packs, L queries, S keys, N heads, K head width.
"""

import functools

import jax
import jax.numpy as jnp

from goku_jax.models.attention import NOTHING, keep
from goku_jax.typing import UserError

BLOCK = 128  # queries and keys are padded to whole blocks
TYPES = (jnp.bfloat16, jnp.float16)
LAST = jnp.iinfo(jnp.int32).max


def attend(q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS, *, kernels=None):
  """As `models/attention.py` has it, on a Hopper GPU.

  Ids of keys have to rise along a pack, zeros at its end, as a packer lays
  them and a ring's parts keep them: a pack where they fall gives NaN.

  Args:
    q_BLNK: queries, of one of TYPES; other arrays as there.
    k_BSNK: keys.
    v_BSNK: values.
    q_ids_BL: segment of each query.
    k_ids_BS: of each key.
    kernels: forward and backward, `hopper` unless given.

  Raises:
    UserError: the arrays are of another type.
  """
  if kernels is None:
    if q_BLNK.dtype not in TYPES:
      raise UserError(
        f"attention.kernel=tokamax does not take {q_BLNK.dtype}: set auto or"
        " chunked, or compute in bfloat16"
      )
    kernels = hopper()
  L = q_BLNK.shape[1]
  pad = lambda x: jnp.pad(
    x, ((0, 0), (0, -x.shape[1] % BLOCK), *[(0, 0)] * (x.ndim - 2))
  )
  q, k, v, q_ids, k_ids = map(pad, (q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS))
  runs = jax.vmap(_runs)(q_ids, k_ids)
  out, lse = _attend(q, k, v, *runs, kernels)
  return out[:, :L], lse.swapaxes(1, 2)[:, :L]


def _runs(q_ids_L, k_ids_S):
  """Where each query's keys begin and end, and whether ids rise: bool.

  Queries of padding meet an empty run, at the end of the last segment.
  """
  k_ids = jnp.where(k_ids_S == 0, LAST, k_ids_S)
  q_ids = jnp.where(q_ids_L == 0, LAST - 1, q_ids_L)
  begin, end = (
    jnp.searchsorted(k_ids, q_ids, side).astype(jnp.int32)
    for side in ("left", "right")
  )
  return begin, end, (k_ids[1:] >= k_ids[:-1]).all()


def hopper():
  """Forward and backward of one pack, of tokamax: [L, N, K], runs [1, L]."""
  from tokamax._src.ops.attention import (
    pallas_mosaic_gpu_kernel_sm90 as sm90,
  )
  from tokamax._src.ops.attention import (
    pallas_mosaic_gpu_vjp_kernel_sm90 as sm90_vjp,
  )

  common = dict(is_causal=False, logits_soft_cap=None)

  def forward(q, k, v, *runs):
    out, (top, total) = sm90.flash_attention_kernel(
      *(q, k, v, None, None, *runs),
      logits_scale=q.shape[-1] ** -0.5,
      out_dtype=v.dtype,
      normalize_output=True,
      return_residuals=True,
      use_stable_softmax=True,
      rescale_threshold=1.0,
      config=sm90.Config(block_q=BLOCK // 2, block_kv=BLOCK),
      **common,
    )
    return out, top + jnp.log(total)

  def backward(q, k, v, lse, out, d_out, *runs):
    blocks = ("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return sm90_vjp.flash_attention_vjp_kernel(
      *(q, k, v, (lse, jnp.ones_like(lse)), out, d_out, None, None, *runs),
      logits_scale=q.shape[-1] ** -0.5,
      ds_dtype=None,
      config=sm90_vjp.Config(**dict.fromkeys(blocks, BLOCK // 2)),
      **common,
    )[:3]

  return forward, backward


def _found(q, k, v, begin_BL, end_BL, rises_B, kernels):
  """Output [B, L, N, K] and log-sum-exp [B, N, L]."""
  out, lse = jax.vmap(kernels[0])(q, k, v, begin_BL[:, None], end_BL[:, None])
  has_keys = (begin_BL < end_BL)[:, :, None]
  out = jnp.where(has_keys[..., None], out, 0)
  lse = jnp.where(has_keys.swapaxes(1, 2), lse, NOTHING)
  wrong = jnp.where(rises_B, 0, jnp.nan)[:, None, None]
  return keep(out + wrong[..., None].astype(out.dtype), lse + wrong)


_attend = jax.custom_vjp(_found, nondiff_argnums=(6,))


def _forward(*args):
  *args, kernels = args
  args = [x.value for x in args]
  out, lse = _found(*args, kernels)
  return (out, lse), (*args[:5], out, lse)


def _backward(kernels, found, cotangents):
  q, k, v, begin_BL, end_BL, out, lse = found
  d_out, d_lse = cotangents
  is_zero = lambda x: isinstance(x, jax.custom_derivatives.SymbolicZero)
  d_out = jnp.zeros_like(out) if is_zero(d_out) else d_out
  K = v.shape[-1]
  if not is_zero(d_lse):
    # d logits = p (d_out v - di), and the log-sum-exp's gradient is p itself.
    # The kernel makes di of out d_out, so that two more columns, of -1 and of
    # d_lse in two parts of its short type, take that off; to v they are zeros.
    d_lse = d_lse.swapaxes(1, 2)[..., None]
    high = d_lse.astype(d_out.dtype)
    low = (d_lse - high).astype(d_out.dtype)
    d_out = jnp.concatenate([d_out, high, low], -1)
    widen = functools.partial(jnp.pad, pad_width=[(0, 0)] * 3 + [(0, 2)])
    out, v = widen(out, constant_values=-1), widen(v)
  runs = begin_BL[:, None], end_BL[:, None]
  dq, dk, dv = jax.vmap(kernels[1])(q, k, v, lse, out, d_out, *runs)
  return dq, dk, dv[..., :K], None, None, None


_attend.defvjp(_forward, _backward, symbolic_zeros=True)
