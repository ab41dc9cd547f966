"""Attention within segments by JAX's splash kernels, for TPUs.

Stock splash masks by segment and yet runs every pair of blocks, so that a pack
of short segments costs as much as one long one. Here a table of the blocks
that meet, made of the smallest and largest id in each, is handed to the same
kernels: forward, dq and dkv skip all others. The table has a number for a pair
of blocks, never one for a pair of tokens.

The kernels are called below their public wrapper, which neither takes a table
that is computed in the step nor gives a log-sum-exp that has a gradient. The
fused backward kernel is left alone: its memory grows with the length squared.

Letters: L queries, S keys, N heads, K head width; Q, R blocks of queries, keys.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import (  # noqa: E501
  MaskInfo,
)

from goku_jax.models.attention import NO_ID, NOTHING, keep, meeting

LANES = 128  # a block is a multiple
AT_ONCE = 1024  # keys multiplied at once: more of them overflow a core's memory


def attend(
  q_BLNK,
  k_BSNK,
  v_BSNK,
  q_ids_BL,
  k_ids_BS,
  *,
  block: int,
  key_block: int,
  interpret: bool = False,
):
  """As `models/attention.py` has it, on a TPU.

  Args:
    q_BLNK: queries; other arrays as there.
    k_BSNK: keys.
    v_BSNK: values.
    q_ids_BL: segment of each query.
    k_ids_BS: of each key.
    block: queries that a kernel takes at once.
    key_block: keys that it fetches at once.
    interpret: run on any machine, slowly.
  """
  K, L = q_BLNK.shape[-1], q_BLNK.shape[1]
  rounded = lambda n: -(-n // LANES) * LANES
  blocks = min(block, rounded(L)), min(key_block, rounded(k_BSNK.shape[1]))
  pad = lambda x, to: jnp.pad(
    x, ((0, 0), (0, -x.shape[1] % to), *[(0, 0)] * (x.ndim - 2))
  )
  q = pad(q_BLNK * K**-0.5, blocks[0])
  k, v = (pad(x, blocks[1]) for x in (k_BSNK, v_BSNK))
  q_ids, k_ids = pad(q_ids_BL, blocks[0]), pad(k_ids_BS, blocks[1])
  q_ids = jnp.where(q_ids == 0, NO_ID, q_ids)

  def of_pack(pack):
    *arrays, q_ids_L, k_ids_S = pack
    heads_first = (x.swapaxes(0, 1) for x in arrays)
    return _attend(*heads_first, q_ids_L, k_ids_S, blocks, interpret)

  packs = (q, k, v, q_ids, k_ids)
  if len(q) == 1:
    out, lse = (x[None] for x in of_pack([x[0] for x in packs]))
  else:
    out, lse = jax.lax.map(of_pack, packs)
  out, lse = out.swapaxes(1, 2)[:, :L], lse.swapaxes(1, 2)[:, :L]
  found = lse > NOTHING  # else no key had the query's id
  return jnp.where(found[..., None], out, 0), jnp.where(found, lse, NOTHING)


def _table(meet_QR, axis: int):
  """What a kernel that walks along `axis` runs, and what it fetches meanwhile.

  Where it skips a pair it holds what it has, or has already what comes first.
  """
  places = jnp.arange(meet_QR.shape[axis], dtype=jnp.int32)
  places = jnp.expand_dims(places, 1 - axis)
  last = jnp.where(meet_QR, places, 0).max(axis, keepdims=True)
  first = jnp.where(meet_QR, places, last).min(axis, keepdims=True)
  fetched = jnp.clip(jnp.broadcast_to(places, meet_QR.shape), first, last)
  small = jnp.int8 if meet_QR.shape[axis] <= 127 else jnp.int16
  return MaskInfo(
    data_next=fetched.astype(small)[None],
    mask_next=None,
    block_mask=meet_QR.astype(jnp.int8)[None],
    partial_mask_blocks=None,
    q_sequence=None,
  )


def _tables(q_ids_L, k_ids_S, blocks):
  """Tables of the kernels that walk along keys, and along queries."""
  block_q, block_k = blocks
  meet_QR = meeting(q_ids_L.reshape(-1, block_q), k_ids_S.reshape(-1, block_k))
  # A query that runs no block at all would be divided by zero.
  lonely_Q = ~meet_QR.any(1)
  along_keys = meet_QR.at[:, 0].set(meet_QR[:, 0] | lonely_Q)
  return _table(along_keys, 1), _table(meet_QR, 0)


def _at_once(block_k: int) -> int:
  """Keys of a block that are multiplied at once: as many as are taken."""
  sizes = range(min(block_k, AT_ONCE), 0, -LANES)
  return next(size for size in sizes if block_k % size == 0)


COMMON = dict(
  is_mqa=False,
  mask_value=splash.DEFAULT_MASK_VALUE,
  mask_function=None,
  attn_logits_soft_cap=None,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_NLK, k_NSK, v_NSK, q_ids_L, k_ids_S, blocks, interpret):
  """Output [N, L, K] and log-sum-exp [N, L] of one pack."""
  return _forward(q_NLK, k_NSK, v_NSK, q_ids_L, k_ids_S, blocks, interpret)[0]


def _forward(q, k, v, q_ids, k_ids, blocks, interpret):
  table, _ = _tables(q_ids, k_ids, blocks)
  block_q, block_k = blocks
  out, (lse,) = splash._splash_attention_forward(
    table,
    q,
    k,
    v,
    splash.SegmentIds(q_ids, k_ids),
    None,
    block_sizes=splash.BlockSizes(block_q, block_k, _at_once(block_k)),
    residual_checkpoint_name=None,
    save_residuals=True,
    interpret=interpret,
    **COMMON,
  )
  out, lse = keep(out, lse)
  return (out, lse), (q, k, v, q_ids, k_ids, out, lse)


def _backward(blocks, interpret, found, cotangents):
  q, k, v, q_ids, k_ids, out, lse = found
  d_out, d_lse = cotangents
  along_keys, along_queries = _tables(q_ids, k_ids, blocks)
  block_q, block_k = blocks
  # d logits = p (d_out v - di): the log-sum-exp's gradient is p itself.
  di = jnp.einsum(
    "NLK,NLK->NL", out.astype(jnp.float32), d_out.astype(jnp.float32)
  )
  args = (
    q,
    k,
    v,
    splash.SegmentIds(q_ids, k_ids),
    None,
    lse,
    d_out,
    di - d_lse,
  )
  layout = splash.QKVLayout.HEAD_DIM_MINOR
  options = dict(
    bq=block_q,
    bkv=block_k,
    q_layout=layout,
    k_layout=layout,
    v_layout=layout,
    interpret=interpret,
    **COMMON,
  )
  dq = splash._splash_attention_bwd_dq(*args, mask_info=along_keys, **options)
  _, dk, dv = splash._splash_attention_bwd_dkv(
    *args,
    mask_info=along_queries,
    bkv_compute=_at_once(block_k),
    use_fused_bwd_kernel=False,
    **options,
  )
  return dq, dk, dv, None, None


_attend.defvjp(_forward, _backward)
