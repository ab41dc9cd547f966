"""CLIP's weights: all of them, those of OpenAI's network, or none."""

import json
import pathlib

import numpy as np
import pytest

from goku_jax import files, weights
from goku_jax.convert import clip, formats
from goku_jax.models.judges import clip as models
from goku_jax.typing import UserError
from tests import clip_folder


def test_every_number_has_a_place_and_the_tokenizer_goes_along(tmp_path):
  source = clip_folder.write(tmp_path / "theirs")
  out = tmp_path / "ours"
  formats.convert(source, "clip", out, reverse=False)
  tree, config = weights.load(out)
  theirs = clip_folder.random_tensors()
  kept = [x for name, x in theirs.items() if name not in clip._UNUSED]
  ours = [x.reshape(-1) for x in weights._flatten(tree).values()]
  np.testing.assert_array_equal(
    np.sort(np.concatenate(ours)),
    np.sort(np.concatenate([x.reshape(-1) for x in kept])),
  )
  text = (source / "tokenizer.json").read_bytes()
  assert (out / "tokenizer.json").read_bytes() == text
  digest = files.digest_file(source / "model.safetensors")
  assert config["source_sha256"] == digest
  model = models.from_dict(config["model"])
  assert (model.text.depth, model.image.num_heads, model.patch) == (3, 2, 8)


def test_the_file_itself_may_be_named(tmp_path):
  path = clip_folder.write(tmp_path / "theirs") / "model.safetensors"
  _, config = clip.read(path, files.digest_file(path).upper())
  assert config["network"] == "clip"
  with pytest.raises(UserError, match="another digest"):
    clip.read(path, "0" * 64)


@pytest.mark.parametrize(
  ("config", "name"),
  [
    ({}, "ViT-B/32"),
    ({"vision_config": {"patch_size": 16}}, "ViT-B/16"),
    (
      {
        "projection_dim": 768,
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
        "vision_config": {"hidden_size": 5, "image_size": 336},
        "vision_config_dict": {
          "hidden_size": 1024,
          "num_hidden_layers": 24,
          "num_attention_heads": 16,
          "patch_size": 14,
        },
      },
      "ViT-L/14@336px",
    ),
  ],
)
def test_sizes_left_out_are_the_defaults_of_transformers(config, name):
  sizes = clip.read_sizes(config)
  assert sizes.name == name
  assert sizes.embedding == config.get("projection_dim", 512)
  assert sizes.text.num_heads == sizes.text.width // 64
  assert sizes.image.num_heads == sizes.image.width // 64


def drop(found):
  del found["text_projection.weight"]


def add(found):
  found["text_projection.bias"] = np.zeros(12, np.float32)


def turn(found):
  name = "vision_model.encoder.layers.1.mlp.fc1.weight"
  found[name] = np.ascontiguousarray(found[name].T)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (drop, r"1 missing \(text_projection\.weight\)"),
    (add, r"1 unexpected \(text_projection\.bias\)"),
    (turn, r"1 misshapen \(.*fc1\.weight \(32, 48\) for \(48, 32\)\)"),
  ],
)
def test_other_tensors_are_refused(tmp_path, change, says):
  found = clip_folder.random_tensors()
  change(found)
  with pytest.raises(UserError, match=says):
    clip.read(clip_folder.write(tmp_path / "theirs", found))


@pytest.mark.parametrize(
  ("config", "says"),
  [
    ({"model_type": "siglip"}, "is of a siglip, not of a clip"),
    (
      {"text_config": clip_folder.TEXT | {"hidden_act": "gelu"}},
      "hidden_act='gelu': only 'quick_gelu'",
    ),
  ],
)
def test_another_network_is_refused(tmp_path, config, says):
  with pytest.raises(UserError, match=says):
    clip.read(clip_folder.write(tmp_path / "theirs", **config))


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("tokenizer.json", "has no tokenizer.json: name a folder with it"),
    ("model.safetensors", "has no .safetensors"),
    ("config.json", "config.json, which belongs to the weights"),
  ],
)
def test_a_missing_file_is_named(tmp_path, name, says):
  folder = clip_folder.write(tmp_path / "theirs")
  pathlib.Path(folder / name).unlink()
  with pytest.raises(UserError, match=says):
    clip.read(folder)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("patch", [32, 16, 14])
def test_the_published_sizes_have_the_tensors_of_transformers(patch):
  """Only the shapes: nothing of the size is there."""
  import torch
  import transformers

  large = patch == 14
  vision = dict(patch_size=patch)
  text = {}
  if large:
    vision |= dict(
      hidden_size=1024,
      intermediate_size=4096,
      num_hidden_layers=24,
      num_attention_heads=16,
    )
    text = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
  theirs = transformers.CLIPConfig(
    text_config=text,
    vision_config=vision,
    projection_dim=768 if large else 512,
  )
  with torch.device("meta"):
    state = transformers.CLIPModel(theirs).state_dict()
  shapes = {n: x.shape for n, x in state.items() if n not in clip._UNUSED}
  sizes = clip.read_sizes(json.loads(theirs.to_json_string(use_diff=False)))
  assert sizes.name == f"ViT-{'L' if large else 'B'}/{patch}"
  assert shapes == clip.wanted(models.abstract_params(sizes))
