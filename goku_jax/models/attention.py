"""Attention inside the segments of a pack, and the two layers that use it.

A query and a key meet if their segment ids are equal and not zero. Queries
without any key give exactly zero, with zero gradients.

Letters: B packs, L queries, S keys, N heads, K head width, E text width; n, m
chunks of queries and keys, c, s the queries and keys of one.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from goku_jax.models import layers, rope

FEW_LOGITS = 1 << 22  # 16 MiB in float32
NOTHING = -1e30  # log-sum-exp of no logits
NO_ID = jnp.iinfo(jnp.int32).min  # of what is to meet nothing

dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)


def attend(
  q_BLNK: Float[Array, "B L N K"],
  k_BSNK: Float[Array, "B S N K"],
  v_BSNK: Float[Array, "B S N K"],
  q_ids_BL: Int[Array, "B L"],
  k_ids_BS: Int[Array, "B S"],
  *,
  chunk: int = 1024,
) -> tuple[Float[Array, "B L N K"], Float[Array, "B L N"]]:
  """Softmax attention within segments, and the log-sum-exp of its logits.

  The latter, in float32 and NOTHING where a query has no key, joins parts of
  the keys to the whole (ring attention).

  Long packs are walked by packs, heads and pairs of a chunk of queries and one
  of keys, forward and backward: L x S never exists, and pairs that share no
  segment are passed over. Where all logits are few, one batched product is.
  """
  B, L, N, K = q_BLNK.shape
  few = B * N * L * k_BSNK.shape[1] <= FEW_LOGITS
  of_logits = _batched if few else _walked
  q_BLNK = q_BLNK * K**-0.5
  return of_logits(q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS, chunk)


def keep(out_BLNK, lse_BLN):
  """What a kernel found, under the name by which remat may keep it."""
  return checkpoint_name((out_BLNK, lse_BLN), "attention")


def _batched(q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS, chunk):
  """All logits at once."""
  B, L, N, K = q_BLNK.shape
  chunk = min(chunk, L)
  pad = -L % chunk
  q = jnp.pad(q_BLNK, ((0, 0), (0, pad), (0, 0), (0, 0)))
  ids = jnp.pad(q_ids_BL, ((0, 0), (0, pad)))
  q = q.reshape(B, -1, chunk, N, K).transpose(0, 3, 1, 2, 4)
  ids = ids.reshape(B, -1, chunk)

  def of_chunk(q_cK, ids_c, k_SK, v_SK, ids_S):
    meet_cS = (ids_c[:, None] == ids_S) & (ids_c[:, None] != 0)
    logits_cS = dot(q_cK, k_SK.T)
    top_c = jnp.max(logits_cS, -1, keepdims=True, initial=-1e30, where=meet_cS)
    top_c = jax.lax.stop_gradient(top_c)
    shifted_cS = jnp.where(meet_cS, logits_cS - top_c, 0)
    weight_cS = jnp.where(meet_cS, jnp.exp(shifted_cS), 0)
    total_c = jnp.sum(weight_cS, -1, keepdims=True)
    out_cK = dot(weight_cS.astype(v_SK.dtype), v_SK)
    safe_c = jnp.where(total_c > 0, total_c, 1)
    lse_c = jnp.where(total_c > 0, top_c + jnp.log(safe_c), NOTHING)
    return out_cK / safe_c, lse_c[:, 0]

  of_head = jax.vmap(of_chunk, (0, 0, None, None, None))
  of_pack = jax.vmap(of_head, (0, None, 0, 0, None))
  heads_first = lambda x: x.swapaxes(1, 2)
  out, lse = jax.vmap(of_pack)(
    q, ids, heads_first(k_BSNK), heads_first(v_BSNK), k_ids_BS
  )
  out = out.transpose(0, 2, 3, 1, 4).reshape(B, L + pad, N, K)
  lse = lse.transpose(0, 2, 3, 1).reshape(B, L + pad, N)
  return keep(out[:, :L].astype(v_BSNK.dtype), lse[:, :L])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _walked(q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS, chunk):
  """Pair after pair of chunks."""
  return _forward(q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS, chunk)[0]


def _forward(q, k, v, q_ids, k_ids, chunk):
  def of_head(queries, keys, reach, ids_ms):
    k_msK, v_msK = keys

    def of_chunk(queries):
      (q_cK,), (ids_c, first, end) = queries

      def add_block(j, sums):
        out_cK, top_c, total_c = sums
        logits_cs = dot(q_cK, k_msK[j].T)
        meet_cs = ids_c[:, None] == ids_ms[j]
        logits_cs = jnp.where(meet_cs, logits_cs, -jnp.inf)
        higher_c = jnp.maximum(top_c, logits_cs.max(-1))
        weight_cs = jnp.exp(logits_cs - higher_c[:, None])
        fade_c = jnp.exp(top_c - higher_c)
        seen_cK = dot(weight_cs.astype(v.dtype), v_msK[j])
        out_cK = fade_c[:, None] * out_cK + seen_cK
        return out_cK, higher_c, fade_c * total_c + weight_cs.sum(-1)

      zeros = jnp.zeros(q_cK.shape, jnp.float32)
      sums = zeros, jnp.full(ids_c.shape, NOTHING), zeros[:, 0]
      out_cK, top_c, total_c = jax.lax.fori_loop(first, end, add_block, sums)
      safe_c = jnp.where(total_c > 0, total_c, 1)
      lse_c = jnp.where(total_c > 0, top_c + jnp.log(safe_c), NOTHING)
      return (out_cK / safe_c[:, None]).astype(v.dtype), lse_c

    return jax.lax.map(of_chunk, (queries, reach))

  found = _walk_heads(of_head, (q,), (k, v), q_ids, k_ids, chunk)
  out, lse = keep(*(_join(x, q.shape[1]) for x in found))
  return (out, lse), (q, k, v, q_ids, k_ids, out, lse)


def _backward(chunk, found, cotangents):
  q, k, v, q_ids, k_ids, out, lse = found
  d_out, d_lse = cotangents
  # d logits = p (d_out v - di): the log-sum-exp's gradient is p itself.
  di = jnp.sum(out.astype(jnp.float32) * d_out, -1) - d_lse

  def of_head(queries, keys, reach, ids_ms):
    k_msK, v_msK = keys

    def of_chunk(d_keys, queries):
      (q_cK, d_out_cK, lse_c, di_c), (ids_c, first, end) = queries

      def add_block(j, sums):
        dq_cK, dk_msK, dv_msK = sums
        meet_sc = ids_ms[j][:, None] == ids_c
        logits_sc = jnp.where(meet_sc, dot(k_msK[j], q_cK.T), -jnp.inf)
        p_sc = jnp.exp(logits_sc - lse_c)
        d_sc = p_sc * (dot(v_msK[j], d_out_cK.T) - di_c)
        p_sc, d_sc = p_sc.astype(v.dtype), d_sc.astype(q.dtype)
        dq_cK += dot(d_sc.T, k_msK[j])
        dk_msK = _add_at(dk_msK, j, dot(d_sc, q_cK))
        return dq_cK, dk_msK, _add_at(dv_msK, j, dot(p_sc, d_out_cK))

      sums = jnp.zeros(q_cK.shape, jnp.float32), *d_keys
      dq_cK, *d_keys = jax.lax.fori_loop(first, end, add_block, sums)
      return d_keys, dq_cK

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in keys]
    d_keys, dq_ncK = jax.lax.scan(of_chunk, zeros, (queries, reach))
    return dq_ncK, *d_keys

  queries = q, d_out, lse, di
  grads = _walk_heads(of_head, queries, (k, v), q_ids, k_ids, chunk)
  grads = (
    _join(grad, x.shape[1]).astype(x.dtype)
    for grad, x in zip(grads, (q, k, v), strict=True)
  )
  return *grads, None, None


_walked.defvjp(_forward, _backward)


def _walk_heads(of_head, queries, keys, q_ids_BL, k_ids_BS, chunk):
  """`of_head` of each pack and head, by chunks: [n, c, ...] and [m, s, ...]."""
  cut = functools.partial(_cut, chunk=chunk)
  heads_first = lambda x: jnp.moveaxis(cut(x), 3, 1)
  # No query looks for NO_ID, and so those of 0 meet nothing.
  k_ids = cut(k_ids_BS)
  k_ids = jnp.where(k_ids == 0, NO_ID, k_ids)

  def of_pack(pack):
    queries, keys, ids_nc, ids_ms = pack
    reach = ids_nc, *_reach(ids_nc, ids_ms)
    return jax.lax.map(
      lambda head: of_head(*head, reach, ids_ms), (queries, keys)
    )

  split = jax.tree.map(heads_first, (queries, keys))
  return jax.lax.map(of_pack, (*split, cut(q_ids_BL), k_ids))


def meeting(ids_nc, ids_ms):
  """Which chunks of queries and keys may share a segment, bool [n, m].

  By the smallest and largest id in each: exact where ids rise along the pack,
  as a packer lays segments. Ids of 0 and NO_ID belong to none.
  """

  def span(ids):
    is_none = (ids == 0) | (ids == NO_ID)
    low = jnp.where(is_none, jnp.iinfo(ids.dtype).max, ids).min(1)
    return low, jnp.where(is_none, NO_ID, ids).max(1)

  (low_n, high_n), (low_m, high_m) = span(ids_nc), span(ids_ms)
  return (low_n[:, None] <= high_m) & (low_m <= high_n[:, None])


def _reach(ids_nc, ids_ms):
  """The first block of keys that each chunk may meet, and the end of them."""
  meet_nm = meeting(ids_nc, ids_ms)
  places = jnp.arange(len(ids_ms))
  first_n = jnp.where(meet_nm, places, len(ids_ms)).min(1)
  return first_n, jnp.where(meet_nm, places + 1, 0).max(1)


def _cut(x_BL, chunk):
  """Chunks of equal length, `chunk` at most, the last one padded."""
  B, L, *rest = x_BL.shape
  n = -(-L // chunk)
  pad = [(0, 0)] * x_BL.ndim
  pad[1] = (0, -L % n)
  return jnp.pad(x_BL, pad).reshape(B, n, -1, *rest)


def _join(x_BNnc, L):
  """[B, N, n, c, ...] to [B, L, N, ...], without padding."""
  x = jnp.moveaxis(x_BNnc, 1, 3)
  return x.reshape(len(x), -1, *x.shape[3:])[:, :L]


def _add_at(x, j, y):
  return jax.lax.dynamic_update_index_in_dim(x, x[j] + y, j, 0)


def segment_attention(*args, **options) -> Float[Array, "B L N K"]:
  """`attend` without the log-sum-exp."""
  return attend(*args, **options)[0]


class Attention(nn.Module):
  """Multi-head attention with normalised queries and keys.

  The RMS norm of queries and keys spans the whole inner width, before the
  split into heads (released code; ViT-22B, arXiv:2302.05442).
  """

  num_heads: int
  use_bias: bool = False
  dtype: Any = jnp.float32
  attention_fn: Any = segment_attention

  @nn.compact
  def __call__(self, x_BLD, source_BSE, q_ids_BL, k_ids_BS, q_rope, k_rope):
    """`x_BLD` attends to `source_BSE`; a rope of None leaves its side be."""
    D = x_BLD.shape[-1]
    dense = functools.partial(
      nn.Dense,
      D,
      use_bias=self.use_bias,
      kernel_init=layers.xavier,
      dtype=self.dtype,
    )

    def heads(y, tables):
      y = y.astype(self.dtype)  # at once: float32 would be held whole
      y = y.reshape(*y.shape[:-1], self.num_heads, D // self.num_heads)
      return y if tables is None else rope.rotate(y, *tables).astype(y.dtype)

    q = heads(layers.RMSNorm(name="q_norm")(dense(name="q")(x_BLD)), q_rope)
    k = layers.RMSNorm(name="k_norm")(dense(name="k")(source_BSE))
    k = heads(k, k_rope)
    v = heads(dense(name="v")(source_BSE), None)
    out_BLNK = self.attention_fn(q, k, v, q_ids_BL, k_ids_BS)
    return dense(name="out")(out_BLNK.reshape(x_BLD.shape))
