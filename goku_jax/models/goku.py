"""The trained model: a text encoder and the flow transformer it steers."""

import contextlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from goku_jax.models import attention, layers, rope, transformer
from goku_jax.models import lora as adapters
from goku_jax.models.text import ByteEncoder, TextConfig
from goku_jax.typing import UserError


class Goku(nn.Module):
  """Velocities of packed tokens from their packed captions.

  The two methods are separate so that sampling encodes a prompt once and
  calls `velocity` at every step; `__call__` is both, as training needs it.
  """

  config: transformer.TransformerConfig
  text_config: TextConfig | None = None
  attention_fn: Any = attention.segment_attention  # among tokens
  text_attention_fn: Any = attention.segment_attention  # to text
  weights_fn: Any = None  # of each layer's; not while they are made
  lora: Any = None  # keywords of `lora.adapt`; None: no adapters

  def setup(self):
    fns = self.attention_fn, self.text_attention_fn, self.weights_fn
    self.transformer = transformer.Transformer(self.config, *fns)
    if self.text_config:
      self.text = ByteEncoder(self.text_config, self.text_attention_fn)

  def encode_text(self, batch: dict) -> Float[Array, "B S E"] | None:
    """Embeddings of the batch's captions, None without text."""
    if self.text_config:
      names = ("text_ids_BS", "text_segment_ids_BS", "text_positions_BS")
      return self.text(*(batch[name] for name in names))
    if self.config.text_width:
      return batch["text_embeddings_BSE"].astype(jnp.float32)
    return None

  def velocity(
    self,
    tokens_BLP: Float[Array, "B L P"],
    t_BG: Float[Array, "B G"],
    batch: dict,
    text_BSE: Float[Array, "B S E"] | None,
    dropped_BG: Bool[Array, "B G"],
  ) -> Float[Array, "B L P"]:
    """`data - noise` at `tokens_BLP`; see `Transformer`."""
    condition_BLK = batch["condition_BLK"] if self.config.conditioned else None
    with adapters.adapt(**self.lora) if self.lora else contextlib.nullcontext():
      return self.transformer(
        tokens_BLP,
        t_BG,
        batch["segment_ids_BL"],
        batch["positions_BL3"],
        text_BSE=text_BSE,
        text_segment_ids_BS=batch["text_segment_ids_BS"],
        class_BG=batch["class_BG"],
        dropped_BG=dropped_BG,
        condition_BLK=condition_BLK,
      )

  def __call__(
    self,
    tokens_BLP: Float[Array, "B L P"],
    t_BG: Float[Array, "B G"],
    batch: dict,
    dropped_BG: Bool[Array, "B G"],
  ) -> Float[Array, "B L P"]:
    text_BSE = self.encode_text(batch)
    return self.velocity(tokens_BLP, t_BG, batch, text_BSE, dropped_BG)


def make_goku(
  variant: str,
  *,
  text=None,
  lora=None,
  dtype: str = "float32",
  attention_fn=attention.segment_attention,
  text_attention_fn=attention.segment_attention,
  weights_fn=None,
  **sizes,
) -> Goku:
  """The model of a named variant, its sizes overridden by `sizes`.

  Args:
    variant: a name in `transformer.VARIANTS`.
    text: sizes of the byte encoder (`TextConfig`), or None for embeddings
      from outside or no text at all.
    lora: keywords of `lora.adapt`, or None for a model without adapters.
    dtype: of matrix products; parameters stay float32.
    attention_fn: see `attention.segment_attention`; among tokens.
    text_attention_fn: the same, to text.
    weights_fn: through which the weights of a layer pass before it uses them,
      none while they are made.
    **sizes: fields of `TransformerConfig`; those that are None are the
      variant's.

  Raises:
    UserError: the variant or dtype is not one of the known, or a size does not
      fit.
  """
  if variant not in transformer.VARIANTS:
    known = ", ".join(transformer.VARIANTS)
    raise UserError(f"model.variant={variant!r} is not one of {known}")
  compute = layers.read_dtype(dtype)
  if text is not None:
    text = TextConfig(**text, dtype=compute)
    sizes["text_width"] = text.width
  sizes = {name: size for name, size in sizes.items() if size is not None}
  config = transformer.TransformerConfig(
    **transformer.VARIANTS[variant] | sizes | dict(dtype=compute)
  )
  _check_heads("model", config)
  try:
    rope.axis_widths(config.width // config.num_heads)
  except ValueError as error:
    raise UserError(f"model: {error}; set fewer heads or a width") from error
  if config.positions not in ("rope", "sinusoidal"):
    raise UserError(
      f"model.positions={config.positions!r} is not one of rope, sinusoidal"
    )
  if text is not None:
    _check_heads("model.text", text)
    if text.width % 2 or text.width < 4:  # sines and cosines of the place
      raise UserError(
        f"model.text.width={text.width}: set an even number, 4 or more"
      )
  if config.remat != "none":
    transformer.remat_policy(config.remat)
  if lora:
    adapters.adapt(**lora)  # may refuse
    lora = FrozenDict(lora)  # modules are hashed
  fns = attention_fn, text_attention_fn, weights_fn
  return Goku(config, text, *fns, lora)


def _check_heads(section, config):
  """Refuses a width that does not split into its heads."""
  if config.num_heads < 1 or config.width % config.num_heads:
    raise UserError(
      f"{section}.num_heads={config.num_heads} does not divide "
      f"width={config.width}"
    )
