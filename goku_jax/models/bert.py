"""The encoder of BERT (arXiv:1810.04805), of which MiniLM is a small one.

Learned places are added to the pieces, and each part's norm comes after what it
adds. Residuals, norms and softmax are float32 whatever the dtype of products.

Letters: B captions, S text tokens, E text width.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from goku_jax.models import attention


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes of the encoder."""

  vocab_size: int
  width: int
  depth: int
  num_heads: int
  mlp_width: int
  places: int  # tokens of the longest text
  kinds: int  # of sentences; all of ours are the first
  eps: float = 1e-12
  dtype: Any = jnp.float32  # of matrix products


class SelfAttention(nn.Module):
  """Attention among the tokens of a caption."""

  config: BertConfig

  @nn.compact
  def __call__(self, h_BSE, ids_BS):
    cfg = self.config
    shape = *h_BSE.shape[:2], 3, cfg.num_heads, cfg.width // cfg.num_heads
    dense = functools.partial(nn.Dense, dtype=cfg.dtype)
    qkv = dense(3 * cfg.width, name="qkv")(h_BSE).reshape(shape)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    out_BSNK = attention.segment_attention(q, k, v, ids_BS, ids_BS)
    return dense(cfg.width, name="out")(out_BSNK.reshape(h_BSE.shape))


class Mlp(nn.Module):
  """Two layers with the exact GELU between them."""

  config: BertConfig

  @nn.compact
  def __call__(self, h_BSE):
    cfg = self.config
    dense = functools.partial(nn.Dense, dtype=cfg.dtype)
    h = nn.gelu(dense(cfg.mlp_width, name="up")(h_BSE), approximate=False)
    return dense(cfg.width, name="down")(h)


class Block(nn.Module):
  """One layer: self-attention and MLP, each added and then normalised."""

  config: BertConfig

  @nn.compact
  def __call__(self, x_BSE, ids_BS):
    cfg = self.config
    norm = lambda name: nn.LayerNorm(cfg.eps, name=name)
    h = x_BSE.astype(cfg.dtype)
    x_BSE += SelfAttention(cfg, name="self_attn")(h, ids_BS)
    x_BSE = norm("attn_norm")(x_BSE)
    x_BSE += Mlp(cfg, name="mlp")(x_BSE.astype(cfg.dtype))
    x_BSE = norm("mlp_norm")(x_BSE)
    return nn.with_logical_constraint(x_BSE, ("batch", None, None)), None


class BertEncoder(nn.Module):
  """One embedding for each token of each caption."""

  config: BertConfig

  @nn.compact
  def __call__(
    self, text_ids_BS: Int[Array, "B S"], text_mask_BS: Bool[Array, "B S"]
  ) -> Float[Array, "B S E"]:
    """Float32; zero where the mask is False, whose ids touch nothing else."""
    cfg = self.config
    embed = lambda count, name: nn.Embed(count, cfg.width, name=name)
    x_BSE = embed(cfg.vocab_size, "pieces")(text_ids_BS).astype(jnp.float32)
    x_BSE += embed(cfg.places, "places")(jnp.arange(text_ids_BS.shape[1]))
    x_BSE += embed(cfg.kinds, "kinds")(jnp.zeros((), int))
    x_BSE = nn.LayerNorm(cfg.eps, name="norm")(x_BSE)
    x_BSE = nn.with_logical_constraint(x_BSE, ("batch", None, None))
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=cfg.depth,
    )(cfg, name="blocks")
    x_BSE, _ = blocks(x_BSE, text_mask_BS.astype(jnp.int32))  # one segment
    return jnp.where(text_mask_BS[..., None], x_BSE, 0.0)
