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
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from goku_jax.models import layers, rope

FEW_LOGITS = 1 << 22  # 16 MiB in float32
NOTHING = -1e30  # log-sum-exp of no logits


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

  def of_chunk(q_cK, ids_c, k_SK, v_SK, ids_S):
    meet_cS = (ids_c[:, None] == ids_S) & (ids_c[:, None] != 0)
    logits_cS = jnp.dot(q_cK, k_SK.T, preferred_element_type=jnp.float32)
    top_c = jnp.max(logits_cS, -1, keepdims=True, initial=-1e30, where=meet_cS)
    top_c = jax.lax.stop_gradient(top_c)
    shifted_cS = jnp.where(meet_cS, logits_cS - top_c, 0)
    weight_cS = jnp.where(meet_cS, jnp.exp(shifted_cS), 0)
    total_c = jnp.sum(weight_cS, -1, keepdims=True)
    out_cK = jnp.dot(
      weight_cS.astype(v_SK.dtype), v_SK, preferred_element_type=jnp.float32
    )
    safe_c = jnp.where(total_c > 0, total_c, 1)
    lse_c = jnp.where(total_c > 0, top_c + jnp.log(safe_c), NOTHING)
    return out_cK / safe_c, lse_c[:, 0]

  of_chunk = of_chunk if few else jax.checkpoint(of_chunk)

  def of_pack(pack):
    q_Nnc, ids_nc, k_SNK, v_SNK, ids_S = pack

    def of_head(head):
      q_ncK, k_SK, v_SK = head
      return walk(
        lambda chunk: of_chunk(*chunk, k_SK, v_SK, ids_S), (q_ncK, ids_nc)
      )

    heads = (q_Nnc, k_SNK.swapaxes(0, 1), v_SNK.swapaxes(0, 1))
    return walk(of_head, heads)

  out, lse = walk(of_pack, (q, ids, k_BSNK, v_BSNK, k_ids_BS))
  out = out.transpose(0, 2, 3, 1, 4).reshape(B, L + pad, N, K)
  lse = lse.transpose(0, 2, 3, 1).reshape(B, L + pad, N)
  return keep(out[:, :L].astype(v_BSNK.dtype), lse[:, :L])


def keep(out_BLNK, lse_BLN):
  """What a kernel found, under the name by which remat may keep it."""
  return checkpoint_name((out_BLNK, lse_BLN), "attention")


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
      y = y.reshape(*y.shape[:-1], self.num_heads, D // self.num_heads)
      return y if tables is None else rope.rotate(y, *tables)

    q = heads(layers.RMSNorm(name="q_norm")(dense(name="q")(x_BLD)), q_rope)
    k = layers.RMSNorm(name="k_norm")(dense(name="k")(source_BSE))
    k = heads(k, k_rope)
    v = heads(dense(name="v")(source_BSE), None)
    q, k, v = (y.astype(self.dtype) for y in (q, k, v))
    out_BLNK = self.attention_fn(q, k, v, q_ids_BL, k_ids_BS)
    return dense(name="out")(out_BLNK.reshape(x_BLD.shape))
