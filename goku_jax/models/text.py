"""A small text encoder over pieces of four bytes, trained with the flow model.

It fills the place of a frozen T5: token ids in, one embedding a token out.
Captions are packed as samples are; a caption sees nothing but itself.

Letters: B packs, S text tokens, E text width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from goku_jax.models import attention, layers

PIECE = 4  # bytes in a token


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of the byte encoder."""

  width: int = 128
  depth: int = 2
  num_heads: int = 4
  dtype: Any = jnp.float32


class ByteEncoder(nn.Module):
  """One embedding for each piece of every caption in a pack.

  A token id is a piece's bytes as one number; each byte has an embedding for
  its place in the piece, and a piece is their sum.
  """

  config: TextConfig
  attention_fn: Any = attention.segment_attention

  @nn.compact
  def __call__(
    self,
    text_ids_BS: Int[Array, "B S"],
    text_segment_ids_BS: Int[Array, "B S"],
    text_positions_BS: Int[Array, "B S"],
  ) -> Float[Array, "B S E"]:
    """Padding (segment 0) comes back as whatever the norms make of it."""
    cfg = self.config
    place = jnp.arange(PIECE)
    byte_BSp = (text_ids_BS[..., None] >> (8 * place)) & 255
    x_BSE = nn.Embed(
      256 * PIECE,
      cfg.width,
      embedding_init=nn.initializers.normal(PIECE**-0.5),
      name="bytes",
    )(byte_BSp + 256 * place).sum(-2)
    x_BSE += layers.timestep_features(text_positions_BS / 1000.0, cfg.width)
    x_BSE = nn.with_logical_constraint(x_BSE, ("batch", None, None))
    ids = text_segment_ids_BS
    for i in range(cfg.depth):
      h = layers.RMSNorm(name=f"attn_norm_{i}")(x_BSE).astype(cfg.dtype)
      x_BSE += attention.Attention(
        cfg.num_heads,
        dtype=cfg.dtype,
        attention_fn=self.attention_fn,
        name=f"self_attn_{i}",
      )(h, h, ids, ids, None, None)
      h = layers.RMSNorm(name=f"mlp_norm_{i}")(x_BSE).astype(cfg.dtype)
      x_BSE += layers.Mlp(4 * cfg.width, cfg.dtype, name=f"mlp_{i}")(h)
    x_BSE = nn.with_logical_constraint(x_BSE, ("batch", None, None))
    return layers.RMSNorm(name="norm")(x_BSE)
