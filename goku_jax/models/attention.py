"""Attention inside the segments of a pack, and the two layers that use it.

A query and a key meet if their segment ids are equal and not zero. Queries
without any key give exactly zero, with zero gradients.

Letters: B packs, L queries, S keys, N heads, K head width, E text width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from goku_jax.models import layers, rope

FEW_LOGITS = 1 << 22  # 16 MiB in float32


def segment_attention(
  q_BLNK: Float[Array, "B L N K"],
  k_BSNK: Float[Array, "B S N K"],
  v_BSNK: Float[Array, "B S N K"],
  q_ids_BL: Int[Array, "B L"],
  k_ids_BS: Int[Array, "B S"],
  *,
  chunk: int = 1024,
) -> Float[Array, "B L N K"]:
  """Softmax attention within segments.

  Long packs are walked by packs, heads and chunks of queries, which keeps the
  logits in the cache: on a CPU that is four times faster than the stock call,
  and L x S never exists. Where all logits are few, one batched product is.
  """
  B, L, N, K = q_BLNK.shape
  chunk = min(chunk, L)
  pad = -L % chunk
  few = B * N * L * k_BSNK.shape[1] <= FEW_LOGITS
  walk = (lambda fn, xs: jax.vmap(fn)(xs)) if few else jax.lax.map
  q = jnp.pad(q_BLNK, ((0, 0), (0, pad), (0, 0), (0, 0))) * K**-0.5
  ids = jnp.pad(q_ids_BL, ((0, 0), (0, pad)))
  q = q.reshape(B, -1, chunk, N, K).transpose(0, 3, 1, 2, 4)
  ids = ids.reshape(B, -1, chunk)

  def attend(q_cK, ids_c, k_SK, v_SK, ids_S):
    meet_cS = (ids_c[:, None] == ids_S) & (ids_c[:, None] != 0)
    logits_cS = jnp.dot(q_cK, k_SK.T, preferred_element_type=jnp.float32)
    top_c = jnp.max(logits_cS, -1, keepdims=True, initial=-1e30, where=meet_cS)
    shifted_cS = jnp.where(meet_cS, logits_cS - jax.lax.stop_gradient(top_c), 0)
    weight_cS = jnp.where(meet_cS, jnp.exp(shifted_cS), 0)
    total_c = jnp.sum(weight_cS, -1, keepdims=True)
    out_cK = jnp.dot(
      weight_cS.astype(v_SK.dtype), v_SK, preferred_element_type=jnp.float32
    )
    return out_cK / jnp.where(total_c > 0, total_c, 1)

  attend = attend if few else jax.checkpoint(attend)

  def of_pack(pack):
    q_Nnc, ids_nc, k_SNK, v_SNK, ids_S = pack

    def of_head(head):
      q_ncK, k_SK, v_SK = head
      of_chunk = lambda chunk: attend(*chunk, k_SK, v_SK, ids_S)
      return walk(of_chunk, (q_ncK, ids_nc))

    heads = (q_Nnc, k_SNK.swapaxes(0, 1), v_SNK.swapaxes(0, 1))
    return walk(of_head, heads)

  out = walk(of_pack, (q, ids, k_BSNK, v_BSNK, k_ids_BS))
  out = out.transpose(0, 2, 3, 1, 4).reshape(B, L + pad, N, K)
  return out[:, :L].astype(v_BSNK.dtype)


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
      y = y.reshape(*y.shape[:-1], self.num_heads, D // self.num_heads)
      return y if tables is None else rope.rotate(y, *tables)

    q = heads(layers.RMSNorm(name="q_norm")(dense(name="q")(x_BLD)), q_rope)
    k = layers.RMSNorm(name="k_norm")(dense(name="k")(source_BSE))
    k = heads(k, k_rope)
    v = heads(dense(name="v")(source_BSE), None)
    q, k, v = (y.astype(self.dtype) for y in (q, k, v))
    out_BLNK = self.attention_fn(q, k, v, q_ids_BL, k_ids_BS)
    return dense(name="out")(out_BLNK.reshape(x_BLD.shape))
