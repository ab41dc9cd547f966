"""Goku's flow transformer on packed images and clips (sections 2.1, 2.2).

A pack is one row of tokens that belong to several samples ("segments"). Each
segment has its own flow time, class and caption; what belongs to a segment is
spread over its tokens by a one-hot product, exact and free of scatters.

Letters: B packs, L tokens, P patch volume times channels, G segments of a
pack, S text tokens, E text width, D model width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from goku_jax.models import attention, layers, rope
from goku_jax.typing import UserError

NULL_TEXT = -1  # text segment id of the pack's copy of the empty caption

NAMED = ("attention", "mlp")  # activations that remat may speak of
REMAT = {  # presets of `TransformerConfig.remat`
  "full": "",
  "keep_attention": "attention",  # its log-sum-exp with it
  "offload": "attention:offload",
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes of the network; the variants below are the named ones."""

  width: int
  depth: int
  num_heads: int
  mlp_ratio: int = 4
  patch_size: tuple[int, int, int] = (1, 2, 2)  # of latents: t, h, w
  latent_channels: int = 16
  text_width: int = 0  # 0: no cross-attention
  num_classes: int = 0  # 0: no class embedding
  conditioned: bool = False  # on given frames (section 2.5)
  attention_bias: bool = False
  rotate_cross_queries: bool = True  # as the released code does
  positions: str = "rope"  # or sinusoidal: added to the tokens
  rope_theta: float = 10_000.0  # of either
  # What the backward pass finds again: all with "none"; else activations by
  # name, kept or, as in "attention:offload,mlp", held in the host's memory. The
  # rest is computed again. Presets: REMAT.
  remat: str = "full"
  unroll: int = 1  # layers compiled in a row: faster steps, slower compiles
  dtype: Any = jnp.float32  # of matrix products

  @property
  def patch_width(self) -> int:
    """Numbers in a token: P."""
    t, h, w = self.patch_size
    return t * h * w * self.latent_channels

  @property
  def condition_width(self) -> int:
    """Numbers of a token's condition: K, with one more channel."""
    t, h, w = self.patch_size
    return t * h * w * (self.latent_channels + 1) * self.conditioned


VARIANTS = {
  # Table 1 of the paper. Text is FLAN-T5 XL's, 2048 wide (Table 5); 1B is the
  # class-conditional ImageNet pilot of section 2.3.
  "1b": dict(width=1152, depth=28, num_heads=16, num_classes=1000),
  # DiT's base size, arXiv:2212.09748, for a smaller pilot.
  "b": dict(width=768, depth=12, num_heads=12, num_classes=1000),
  "2b": dict(width=1792, depth=28, num_heads=28, text_width=2048),
  "8b": dict(width=3072, depth=40, num_heads=48, text_width=2048),
  # The same widths with heads of 128, which fill a TPU's matrix unit.
  "2b-hd128": dict(width=1792, depth=28, num_heads=14, text_width=2048),
  "8b-hd128": dict(width=3072, depth=40, num_heads=24, text_width=2048),
  # For CPUs. On grids of a few tokens the slow pairs of 10,000 do not turn at
  # all, and attention would hardly learn to tell places: a small theta.
  "digits": dict(
    width=128, depth=6, num_heads=4, rope_theta=20.0, remat="none", unroll=6
  ),
  "small": dict(
    width=256, depth=8, num_heads=4, rope_theta=100.0, remat="none", unroll=8
  ),
  "debug": dict(width=32, depth=2, num_heads=2, remat="none"),
}


class Block(nn.Module):
  """One layer: gated self-attention, plain cross-attention, gated MLP.

  Mixed norms on purpose, as released: a layer norm without parameters before
  self-attention, RMS norms before cross-attention and MLP.
  """

  config: TransformerConfig
  attention_fn: Any = attention.segment_attention
  text_attention_fn: Any = attention.segment_attention

  @nn.compact
  def __call__(self, x_BLD, c_BGD, text_BSE, pack):
    cfg = self.config
    # adaLN-Zero, arXiv:2212.09748: zero at first, so the block is the identity
    adaln_BG6D = nn.Dense(
      6 * cfg.width,
      kernel_init=layers.zeros,
      dtype=cfg.dtype,
      name="adaln",
    )(nn.silu(c_BGD))
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = (
      spread(part, pack["one_hot_BLG"]) for part in jnp.split(adaln_BG6D, 6, -1)
    )
    attend = lambda name, attention_fn: attention.Attention(
      cfg.num_heads, cfg.attention_bias, cfg.dtype, attention_fn, name=name
    )

    h = layers.modulate(layers.layer_norm(x_BLD), shift_attn, scale_attn)
    h = h.astype(cfg.dtype)
    ids = pack["segment_ids_BL"]
    self_attn = attend("self_attn", self.attention_fn)
    h = self_attn(h, h, ids, ids, pack["rope"], pack["rope"])
    x_BLD = x_BLD + (gate_attn * h).astype(x_BLD.dtype)

    if cfg.text_width:
      h = layers.RMSNorm(name="cross_norm")(x_BLD).astype(cfg.dtype)
      q_rope = pack["rope"] if cfg.rotate_cross_queries else None
      h = attend("cross_attn", self.text_attention_fn)(
        h, text_BSE, pack["text_queries_BL"], pack["text_ids_BS"], q_rope, None
      )
      # With a bias, tokens without text would still receive it.
      x_BLD = x_BLD + jnp.where(pack["has_text_BL"][..., None], h, 0)

    h = layers.RMSNorm(name="mlp_norm")(x_BLD)
    h = layers.modulate(h, shift_mlp, scale_mlp).astype(cfg.dtype)
    h = layers.Mlp(cfg.mlp_ratio * cfg.width, cfg.dtype, name="mlp")(h)
    x_BLD = x_BLD + (gate_mlp * h).astype(x_BLD.dtype)
    return nn.with_logical_constraint(x_BLD, ("batch", "tokens", None)), None


def remat_policy(remat: str):
  """What `TransformerConfig.remat` keeps and offloads, as JAX takes it.

  Raises:
    UserError: it is no preset and names what there is not.
  """
  kept, offloaded = [], []
  for item in filter(None, REMAT.get(remat, remat).split(",")):
    name, _, place = item.partition(":")
    if name not in NAMED or place not in ("", "offload"):
      presets = ", ".join(("none", *REMAT))
      raise UserError(
        f"model.remat={remat!r}: set one of {presets}, or names of"
        f" {', '.join(NAMED)}, each alone or as NAME:offload"
      )
    (offloaded if place else kept).append(name)
  if not offloaded:
    return jax.checkpoint_policies.save_only_these_names(*kept)
  return jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=kept,
    names_which_can_be_offloaded=offloaded,
    offload_src="device",
    offload_dst="pinned_host",
  )


def spread(y_BGD, one_hot_BLG):
  """What belongs to a segment, at each of its tokens; zero on padding.

  Exact in the dtype of `y_BGD`, which is as far as its numbers go.
  """
  one_hot_BLG = one_hot_BLG.astype(y_BGD.dtype)
  return jnp.einsum("BLG,BGD->BLD", one_hot_BLG, y_BGD, precision="highest")


def route_text(segment_ids_BL, text_segment_ids_BS, dropped_BG):
  """Which text ids each token looks for, and whether there are any.

  A segment whose caption is dropped looks for the empty caption instead.
  """
  G = dropped_BG.shape[1]
  wanted_BG = jnp.where(dropped_BG, NULL_TEXT, 1 + jnp.arange(G))
  has_BG = (wanted_BG[:, :, None] == text_segment_ids_BS[:, None]).any(-1)
  index_BL = jnp.maximum(segment_ids_BL - 1, 0)
  at_tokens = lambda y_BG: jnp.take_along_axis(y_BG, index_BL, axis=1)
  queries_BL = jnp.where(segment_ids_BL > 0, at_tokens(wanted_BG), 0)
  return queries_BL, at_tokens(has_BG) & (segment_ids_BL > 0)


class Transformer(nn.Module):
  """The velocity of every token, given each segment's time and condition."""

  config: TransformerConfig
  attention_fn: Any = attention.segment_attention
  text_attention_fn: Any = attention.segment_attention
  weights_fn: Any = None  # of what a layer's weights pass through, if anything

  @nn.compact
  def __call__(
    self,
    tokens_BLP: Float[Array, "B L P"],
    t_BG: Float[Array, "B G"],
    segment_ids_BL: Int[Array, "B L"],
    positions_BL3: Int[Array, "B L 3"],
    *,
    text_BSE: Float[Array, "B S E"] | None = None,
    text_segment_ids_BS: Int[Array, "B S"] | None = None,
    class_BG: Int[Array, "B G"] | None = None,
    dropped_BG: Bool[Array, "B G"] | None = None,
    condition_BLK: Float[Array, "B L K"] | None = None,
  ) -> Float[Array, "B L P"]:
    """Predicts `data - noise` at flow time `t_BG` (0 noise, 1 data)."""
    cfg = self.config
    G = t_BG.shape[1]
    if dropped_BG is None:
      dropped_BG = jnp.zeros(t_BG.shape, bool)
    one_hot_BLG = jax.nn.one_hot(segment_ids_BL - 1, G)  # zero on padding
    tables = None
    if cfg.positions == "rope":
      head_width = cfg.width // cfg.num_heads
      tables = rope.rope_tables(positions_BL3, head_width, cfg.rope_theta)
    pack = dict(
      segment_ids_BL=segment_ids_BL, one_hot_BLG=one_hot_BLG, rope=tables
    )
    if cfg.text_width:
      queries, has_text = route_text(
        segment_ids_BL, text_segment_ids_BS, dropped_BG
      )
      pack |= dict(
        text_queries_BL=queries,
        has_text_BL=has_text,
        text_ids_BS=text_segment_ids_BS,
      )
      text_BSE = text_BSE.astype(cfg.dtype)

    c_BGD = layers.TimestepEmbedding(cfg.width, cfg.dtype, name="time")(t_BG)
    if cfg.num_classes:
      # Row num_classes stands for a class that is dropped, or unknown.
      is_none = dropped_BG | (class_BG < 0)
      rows_BG = jnp.where(is_none, cfg.num_classes, class_BG)
      c_BGD += nn.Embed(
        cfg.num_classes + 1,
        cfg.width,
        embedding_init=layers.normal_02,
        name="class",
      )(rows_BG)
    # Segments are dealt as tokens are, and so the gradients of all `adaln`.
    c_BGD = nn.with_logical_constraint(c_BGD, ("batch", "tokens", None))

    if cfg.conditioned:
      tokens_BLP = layers.Condition(
        cfg.latent_channels, cfg.dtype, name="condition"
      )(tokens_BLP, condition_BLK)
    x_BLD = nn.Dense(
      cfg.width, kernel_init=layers.xavier, dtype=cfg.dtype, name="patch_in"
    )(tokens_BLP)
    if tables is None:
      added = rope.sinusoids(positions_BL3, cfg.width, cfg.rope_theta)
      x_BLD += added.astype(x_BLD.dtype)
    x_BLD = nn.with_logical_constraint(x_BLD, ("batch", "tokens", None))
    block = Block
    if self.weights_fn:
      block = nn.map_variables(block, "params", self.weights_fn)
    if cfg.remat != "none":
      policy = remat_policy(cfg.remat)
      block = nn.remat(block, policy=policy, prevent_cse=False)
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=cfg.depth,
      unroll=cfg.unroll,
    )(cfg, self.attention_fn, self.text_attention_fn, name="blocks")
    x_BLD, _ = blocks(x_BLD, c_BGD, text_BSE, pack)

    adaln_BG2D = nn.Dense(
      2 * cfg.width, kernel_init=layers.zeros, dtype=cfg.dtype, name="adaln"
    )(nn.silu(c_BGD))
    shift, scale = (
      spread(part, one_hot_BLG) for part in jnp.split(adaln_BG2D, 2, -1)
    )
    h = layers.modulate(layers.layer_norm(x_BLD), shift, scale)
    return nn.Dense(
      cfg.patch_width,
      kernel_init=layers.zeros,
      dtype=cfg.dtype,
      name="patch_out",
    )(h.astype(cfg.dtype)).astype(jnp.float32)
