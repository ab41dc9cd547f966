"""A small CLIP in a folder as transformers writes it, with a tokenizer."""

import json

import numpy as np
import safetensors.numpy
import tokenizers

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SENTENCES = [
  "a red ball rolls over a wet road in the rain",
  "two dogs run along the beach at sunset",
  "a camera pans over a quiet city at night",
]
TEXT = dict(
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=3,
  num_attention_heads=4,
  max_position_embeddings=20,
  vocab_size=300,
)
VISION = dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=2,
  image_size=24,
  patch_size=8,
)
EMBEDDING = 12


def make_tokenizer() -> tokenizers.Tokenizer:
  """Byte pairs, with the two ids behind them that CLIP has."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.normalizer = tokenizers.normalizers.Lowercase()
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=290,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(SENTENCES, trainer)
  made.add_special_tokens([BEGIN, END])
  made.enable_truncation(5)  # files ask for it, and are not obeyed
  made.enable_padding(length=9)
  return made


def random_tensors(seed=5) -> dict:
  """Weights under their names."""
  rng = np.random.default_rng(seed)
  found = {"logit_scale": np.array(4.6, np.float32)}

  def put(name, *shape, spread=None):
    spread = shape[-1] ** -0.5 if spread is None else spread
    found[name] = np.float32(spread) * rng.standard_normal(shape, np.float32)

  def norm(name, width):
    put(f"{name}.bias", width, spread=0.1)
    put(f"{name}.weight", width, spread=0.1)
    found[f"{name}.weight"] += 1

  def dense(name, out, inside):
    put(f"{name}.weight", out, inside)
    put(f"{name}.bias", out, spread=0.1)

  def tower(name, sizes, places):
    D, F = sizes["hidden_size"], sizes["intermediate_size"]
    put(f"{name}.embeddings.position_embedding.weight", places, D)
    count = np.arange(places, dtype=np.int64)[None]
    found[f"{name}.embeddings.position_ids"] = count
    for i in range(sizes["num_hidden_layers"]):
      layer = f"{name}.encoder.layers.{i}."
      norm(layer + "layer_norm1", D)
      norm(layer + "layer_norm2", D)
      for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        dense(f"{layer}self_attn.{part}", D, D)
      dense(layer + "mlp.fc1", F, D)
      dense(layer + "mlp.fc2", D, F)

  D, side = VISION["hidden_size"], VISION["patch_size"]
  tower("vision_model", VISION, (VISION["image_size"] // side) ** 2 + 1)
  put("vision_model.embeddings.class_embedding", D)
  put("vision_model.embeddings.patch_embedding.weight", D, 3, side, side)
  norm("vision_model.pre_layrnorm", D)
  norm("vision_model.post_layernorm", D)
  put("visual_projection.weight", EMBEDDING, D)
  D = TEXT["hidden_size"]
  tower("text_model", TEXT, TEXT["max_position_embeddings"])
  put("text_model.embeddings.token_embedding.weight", TEXT["vocab_size"], D)
  norm("text_model.final_layer_norm", D)
  put("text_projection.weight", EMBEDDING, D)
  return found


def write(folder, found=None, **config):
  """The folder, its tensors or its config changed."""
  config = {
    "model_type": "clip",
    "projection_dim": EMBEDDING,
    "text_config": TEXT,
    "vision_config": VISION,
  } | config
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(
    random_tensors() if found is None else found, folder / "model.safetensors"
  )
  make_tokenizer().save(str(folder / "tokenizer.json"))
  return folder
