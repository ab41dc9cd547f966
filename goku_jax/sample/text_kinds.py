"""The kinds of frozen text encoders: what they are called where they come from.

FLAN-T5 is Goku's; BERT's MiniLM is one whose weights a package carries.
"""

from collections.abc import Callable
from typing import NamedTuple

from goku_jax.models import bert
from goku_jax.models import t5 as models


class Kind(NamedTuple):
  """How an encoder's folder becomes ours."""

  model: Callable  # config -> module
  config: Callable  # sizes -> config
  sizes: dict[str, str]  # the config's field: the name in config.json
  needs: dict[str, str]  # what else config.json has to say
  places: dict[str, tuple]  # our path: their tensors, side by side in last dims
  known: Callable[[str], str | None]  # a tensor's name as in `places`, or None
  begin: tuple[str, ...]  # marks before each text
  end: tuple[str, ...]  # and after it


_ATTENTION, _MLP = (f"encoder.block.{{}}.layer.{i}." for i in (0, 1))
_TABLE, _TABLE_TOO = "shared.weight", "encoder.embed_tokens.weight"


def _known_of_t5(name):
  if name in (_TABLE, _TABLE_TOO):
    return _TABLE
  return name if name.startswith("encoder.") else None


T5 = Kind(
  model=models.T5Encoder,
  config=models.T5Config,
  sizes={
    # T5Config's field: the name in config.json
    "vocab_size": "vocab_size",
    "width": "d_model",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "head_width": "d_kv",
    "mlp_width": "d_ff",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
  },
  needs={"model_type": "t5", "feed_forward_proj": "gated-gelu"},
  places={
    # our path: their tensors, side by side in our last dim
    "pieces/embedding": (_TABLE,),
    "distance/bias": (
      "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    "blocks/attn_norm/scale": (_ATTENTION + "layer_norm.weight",),
    "blocks/self_attn/qkv/kernel": tuple(
      f"{_ATTENTION}SelfAttention.{name}.weight" for name in "qkv"
    ),
    "blocks/self_attn/out/kernel": (_ATTENTION + "SelfAttention.o.weight",),
    "blocks/mlp_norm/scale": (_MLP + "layer_norm.weight",),
    "blocks/mlp/up/kernel": tuple(
      f"{_MLP}DenseReluDense.wi_{i}.weight" for i in (0, 1)
    ),
    "blocks/mlp/down/kernel": (_MLP + "DenseReluDense.wo.weight",),
    "norm/scale": ("encoder.final_layer_norm.weight",),
  },
  known=_known_of_t5,
  begin=(),
  end=("</s>",),
)

_LAYER = "encoder.layer.{}."
_SELF, _OUT = _LAYER + "attention.self.", _LAYER + "attention.output."


def _known_of_bert(name):
  name = name.removeprefix("bert.")
  for old, new in (("gamma", "weight"), ("beta", "bias")):  # the first BERT's
    name = name.replace(f"LayerNorm.{old}", f"LayerNorm.{new}")
  is_part = name.startswith(("embeddings.", "encoder."))
  return name if is_part and not name.endswith("position_ids") else None


def _both(path, *names):
  """The kernels and the biases of a layer."""
  return {
    f"{path}/{ours}": tuple(f"{name}.{theirs}" for name in names)
    for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
  }


def _norm(path, name):
  return {
    f"{path}/scale": (f"{name}.weight",),
    f"{path}/bias": (f"{name}.bias",),
  }


BERT = Kind(
  model=bert.BertEncoder,
  config=bert.BertConfig,
  sizes={
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "places": "max_position_embeddings",
    "kinds": "type_vocab_size",
    "eps": "layer_norm_eps",
  },
  needs={"model_type": "bert", "hidden_act": "gelu"},
  places={
    "pieces/embedding": ("embeddings.word_embeddings.weight",),
    "places/embedding": ("embeddings.position_embeddings.weight",),
    "kinds/embedding": ("embeddings.token_type_embeddings.weight",),
    **_norm("norm", "embeddings.LayerNorm"),
    **_both(
      "blocks/self_attn/qkv", *(_SELF + x for x in ("query", "key", "value"))
    ),
    **_both("blocks/self_attn/out", _OUT + "dense"),
    **_norm("blocks/attn_norm", _OUT + "LayerNorm"),
    **_both("blocks/mlp/up", _LAYER + "intermediate.dense"),
    **_both("blocks/mlp/down", _LAYER + "output.dense"),
    **_norm("blocks/mlp_norm", _LAYER + "output.LayerNorm"),
  },
  known=_known_of_bert,
  begin=("[CLS]",),
  end=("[SEP]",),
)
KINDS = {"t5": T5, "bert": BERT}
