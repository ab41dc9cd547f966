"""CLIP as transformers has it: `CLIPModel`, of OpenAI's sizes.

<folder>/config.json        sizes; what is not there is transformers' default
<folder>/model.safetensors
<folder>/tokenizer.json     goes along: what our folder scores texts with
"""

import dataclasses
import pathlib

import jax
import numpy as np

from goku_jax import files, trees
from goku_jax.convert import tensors
from goku_jax.models.judges import clip
from goku_jax.parallel import rules
from goku_jax.typing import UserError

TOKENIZER = "tokenizer.json"
SETTINGS = {"hidden_act": ("quick_gelu",), "num_channels": (3,)}

_SIZES = {
  "width": "hidden_size",
  "depth": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "mlp_width": "intermediate_size",
  "eps": "layer_norm_eps",
}
# What transformers leaves out of a config.json.
_COMMON = {"num_hidden_layers": 12, "layer_norm_eps": 1e-5}
_DEFAULTS = {
  "vision": _COMMON
  | {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
  },
  "text": _COMMON
  | {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
  },
}
_UNUSED = (  # the temperature of training, and counts from zero
  "logit_scale",
  "text_model.embeddings.position_ids",
  "vision_model.embeddings.position_ids",
)
_LAYER = "encoder.layers.{}."
_NORMS = {"attn_norm": "layer_norm1", "mlp_norm": "layer_norm2"}
_DENSE = {
  "qkv": tuple(f"self_attn.{name}_proj" for name in "qkv"),
  "out": ("self_attn.out_proj",),
  "up": ("mlp.fc1",),
  "down": ("mlp.fc2",),
}
_BLOCKS = {  # our module in a block: their modules, side by side
  **{name: (_LAYER + theirs,) for name, theirs in _NORMS.items()},
  **{
    name: tuple(_LAYER + module for module in theirs)
    for name, theirs in _DENSE.items()
  },
}
_IMAGE = {  # our path: their tensor
  "class": "vision_model.embeddings.class_embedding",
  "places": "vision_model.embeddings.position_embedding.weight",
  "patches/kernel": "vision_model.embeddings.patch_embedding.weight",
  "first_norm/scale": "vision_model.pre_layrnorm.weight",
  "first_norm/bias": "vision_model.pre_layrnorm.bias",
  "norm/scale": "vision_model.post_layernorm.weight",
  "norm/bias": "vision_model.post_layernorm.bias",
  "head/kernel": "visual_projection.weight",
}
_TEXT = {
  "places": "text_model.embeddings.position_embedding.weight",
  "pieces/embedding": "text_model.embeddings.token_embedding.weight",
  "norm/scale": "text_model.final_layer_norm.weight",
  "norm/bias": "text_model.final_layer_norm.bias",
  "head/kernel": "text_projection.weight",
}


def read(source, sha256: str | None = None) -> tuple[dict, dict]:
  """Our tree and config of a folder like openai/clip-vit-base-patch32.

  Args:
    source: the folder, or model.safetensors in it.
    sha256: the digest that model.safetensors must have.

  Raises:
    UserError: a file is missing, or is of another network.
  """
  source = pathlib.Path(source)
  folder = source if source.is_dir() else source.parent
  if not (folder / TOKENIZER).is_file():
    raise UserError(
      f"{folder} has no {TOKENIZER}: name a folder with it, config.json and"
      " model.safetensors, as Hugging Face's openai/clip-vit-base-patch32"
    )
  path = tensors.find(source)
  found, theirs = tensors.read(path, "clip", sha256, key="model_type")
  config = read_sizes(theirs)
  for name in _UNUSED:
    found.pop(name, None)
  return _to_tree(found, config, path), {
    "network": "clip",
    "model": dataclasses.asdict(config),
    "source_sha256": files.digest_file(path),
    "tokenizer_sha256": files.digest_file(folder / TOKENIZER),
  }


def read_sizes(theirs: dict) -> clip.CLIPConfig:
  """The sizes in a config.json."""
  towers = {}
  for side, defaults in _DEFAULTS.items():
    # Where an older config.json has both, the second counts.
    names = f"{side}_config", f"{side}_config_dict"
    one, two = (theirs.get(name) or {} for name in names)
    given = one | two
    tensors.check_settings(given, SETTINGS)
    towers[side] = defaults | given
  image, text = towers["vision"], towers["text"]
  sizes = lambda side: {ours: side[name] for ours, name in _SIZES.items()}
  return clip.CLIPConfig(
    image=clip.Tower(**sizes(image)),
    text=clip.Tower(**sizes(text)),
    embedding=theirs.get("projection_dim", 512),
    image_size=image["image_size"],
    patch=image["patch_size"],
    vocab_size=text["vocab_size"],
    max_text=text["max_position_embeddings"],
  )


def wanted(abstract) -> dict:
  """The shapes of their tensors, by name, of our tree as shapes."""
  shapes = {}
  for ours, shape in trees.shapes(abstract).items():
    for names in _names(ours, shape):
      shapes |= dict.fromkeys(names, _shape(ours, shape, len(names)))
  return shapes


def _to_tree(found, config, path):
  abstract = clip.abstract_params(config)
  have = {name: x.shape for name, x in found.items()}
  trees.check_shapes(have, wanted(abstract), f"the weights in {path}")

  def take(keys, leaf):
    ours = trees.path_of(keys)
    out = np.empty(leaf.shape, np.float32)
    layers = out if rules.is_scanned(ours) else out[None]
    for layer, names in zip(layers, _names(ours, leaf.shape), strict=True):
      parts = [found[name] for name in names]
      if ours.endswith("/kernel"):
        parts = [np.moveaxis(x, (0, 1), (-1, -2)) for x in parts]
      layer[...] = np.concatenate(parts, -1)
    return out

  return jax.tree.map_with_path(take, abstract)


def _names(ours, shape) -> list[list[str]]:
  """Of each layer that an array of ours has, the tensors it is made of."""
  side, _, path = ours.partition("/")
  if not rules.is_scanned(ours):
    return [[{"image": _IMAGE, "text": _TEXT}[side][path]]]
  _, module, leaf = path.split("/")
  prefix = {"image": "vision_model.", "text": "text_model."}[side]
  name = "bias" if leaf == "bias" else "weight"
  return [
    [f"{prefix}{m.format(i)}.{name}" for m in _BLOCKS[module]]
    for i in range(shape[0])
  ]


def _shape(ours, shape, parts):
  """Of each of the tensors side by side in one layer of an array of ours."""
  *lead, last = shape[1:] if rules.is_scanned(ours) else shape
  last //= parts
  if not ours.endswith("/kernel"):
    return (*lead, last)
  *window, inside = lead
  return (last, inside, *window)
