"""The encoder of T5 v1.1 and FLAN-T5 (arXiv:1910.10683, arXiv:2210.11416).

Scale-only norms before each part, no biases, attention without the usual
1/sqrt(K), a bias of the logits by distance which all layers share, and a gated
GELU. The values between layers outgrow half precision, so the residual stream,
norms and softmax are float32 whatever the dtype of matrix products.

Letters: B captions, S text tokens (Z as keys), E text width, N heads, K head
width, F MLP width.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from goku_jax.models import layers

MASKED = -1e30  # beside it any logit is lost: such keys weigh exactly zero


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes of the encoder; `num_heads * head_width` need not be `width`."""

  vocab_size: int
  width: int
  depth: int
  num_heads: int
  head_width: int
  mlp_width: int
  buckets: int = 32  # of distances, half of them for keys after the query
  max_distance: int = 128  # from where on all distances share a bucket
  eps: float = 1e-6
  dtype: Any = jnp.float32  # of matrix products


def bucket_of(
  distance: np.ndarray, buckets: int, max_distance: int
) -> np.ndarray:
  """The bucket of each distance, key minus query (section 2.1).

  Of each half, the first half are single distances and the rest widen as
  powers, up to `max_distance`. In float32, as the weights were trained.
  """
  half, single = buckets // 2, buckets // 4
  gap = np.abs(distance)
  power = np.log(np.maximum(gap, 1).astype(np.float32) / np.float32(single))
  power = power / np.float32(np.log(max_distance / single))
  wide = single + (power * np.float32(half - single)).astype(np.int32)
  row = np.where(gap < single, gap, np.minimum(wide, half - 1))
  return row + half * (distance > 0)


class DistanceBias(nn.Module):
  """What each head adds to a logit for the distance of its two tokens."""

  config: T5Config

  @nn.compact
  def __call__(self, S: int) -> Float[Array, "N S S"]:
    cfg = self.config
    table = self.param(
      "bias", layers.normal_02, (cfg.buckets, cfg.num_heads), jnp.float32
    )
    bucket = bucket_of(np.arange(1 - S, S), cfg.buckets, cfg.max_distance)
    place = jnp.arange(S)
    distance_SZ = place[None, :] - place[:, None] + S - 1
    return table.T[:, bucket][:, distance_SZ]


class SelfAttention(nn.Module):
  """Attention whose logits are neither scaled nor normalised."""

  config: T5Config

  @nn.compact
  def __call__(self, h_BSE, bias_NSZ, padding_BZ):
    cfg = self.config
    N, K = cfg.num_heads, cfg.head_width
    dense = _dense(cfg)
    qkv = dense(3 * N * K, name="qkv")(h_BSE)
    q, k, v = jnp.moveaxis(qkv.reshape(*h_BSE.shape[:2], 3, N, K), 2, 0)
    logits_BNSZ = jnp.einsum(
      "BSNK,BZNK->BNSZ", q, k, preferred_element_type=jnp.float32
    )
    logits_BNSZ += bias_NSZ + padding_BZ[:, None, None]
    weight_BNSZ = jax.nn.softmax(logits_BNSZ, -1).astype(cfg.dtype)
    out_BSNK = jnp.einsum("BNSZ,BZNK->BSNK", weight_BNSZ, v)
    return dense(cfg.width, name="out")(
      out_BSNK.reshape(*h_BSE.shape[:2], N * K)
    )


class GatedMlp(nn.Module):
  """Two layers; of what the first gives, one half gates the other."""

  config: T5Config

  @nn.compact
  def __call__(self, h_BSE):
    cfg = self.config
    dense = _dense(cfg)
    up_BS2F = dense(2 * cfg.mlp_width, name="up")(h_BSE)
    gate_BSF, value_BSF = jnp.split(up_BS2F, 2, -1)
    h_BSF = nn.gelu(gate_BSF, approximate=True) * value_BSF
    return dense(cfg.width, name="down")(h_BSF)


class Block(nn.Module):
  """One layer: self-attention and MLP, each added to what it was given."""

  config: T5Config

  @nn.compact
  def __call__(self, x_BSE, bias_NSZ, padding_BZ):
    cfg = self.config
    norm = lambda name: layers.RMSNorm(cfg.eps, name=name)
    h = norm("attn_norm")(x_BSE).astype(cfg.dtype)
    x_BSE += SelfAttention(cfg, name="self_attn")(h, bias_NSZ, padding_BZ)
    h = norm("mlp_norm")(x_BSE).astype(cfg.dtype)
    x_BSE += GatedMlp(cfg, name="mlp")(h)
    return nn.with_logical_constraint(x_BSE, ("batch", None, None)), None


class T5Encoder(nn.Module):
  """One embedding for each token of each caption."""

  config: T5Config

  @nn.compact
  def __call__(
    self, text_ids_BS: Int[Array, "B S"], text_mask_BS: Bool[Array, "B S"]
  ) -> Float[Array, "B S E"]:
    """Float32; zero where the mask is False, whose ids touch nothing else."""
    cfg = self.config
    x_BSE = nn.Embed(cfg.vocab_size, cfg.width, name="pieces")(text_ids_BS)
    x_BSE = x_BSE.astype(jnp.float32)
    x_BSE = nn.with_logical_constraint(x_BSE, ("batch", None, None))
    bias_NSZ = DistanceBias(cfg, name="distance")(text_ids_BS.shape[1])
    padding_BZ = jnp.where(text_mask_BS, 0.0, MASKED)
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=cfg.depth,
    )(cfg, name="blocks")
    x_BSE, _ = blocks(x_BSE, bias_NSZ, padding_BZ)
    x_BSE = layers.RMSNorm(cfg.eps, name="norm")(x_BSE)
    return jnp.where(text_mask_BS[..., None], x_BSE, 0.0)


def abstract_params(model: nn.Module) -> dict:
  """The parameters of a model as shapes."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
  return jax.eval_shape(model.init, jax.random.key(0), ids, mask)["params"]


def _dense(cfg):
  return functools.partial(nn.Dense, use_bias=False, dtype=cfg.dtype)
