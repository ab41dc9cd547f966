"""Weights go out and come in bit for bit, or are refused with one line."""

import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax import weights
from goku_jax.typing import UserError

CONFIG = {"model": {"width": 8, "patch_size": [1, 2, 2]}, "scale": 0.5}


def make_tree():
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((4, 8)).astype(np.float32)
  return {
    "block": {"qkv": {"kernel": jnp.asarray(kernel, jnp.bfloat16)}},
    "out": {"kernel": kernel.T, "bias": jnp.zeros(0)},  # a strided view
    "steps": np.array(7, np.int32),
  }


@pytest.fixture
def saved(tmp_path):
  weights.save(tmp_path / "vae", make_tree(), CONFIG)
  return tmp_path / "vae"


def assert_same(got, want):
  chex.assert_trees_all_equal(got, want)
  chex.assert_trees_all_equal_dtypes(got, want)


def test_weights_and_config_round_trip_exactly(saved):
  tree, config = weights.load(saved)
  assert_same(tree, make_tree())
  assert config == CONFIG


def test_names_in_the_file_are_paths(saved):
  import safetensors

  with safetensors.safe_open(saved / "model.safetensors", "numpy") as file:
    names = set(file.keys())
  assert names == {
    "block/qkv/kernel",
    "out/kernel",
    "out/bias",
    "steps",
  }


def test_a_second_save_replaces_the_first(saved):
  weights.save(saved, {"w": np.ones(3)}, {})
  assert_same(weights.load(saved)[0], {"w": np.ones(3)})
  names = {path.name for path in saved.iterdir()}
  assert names == {"config.json", "model.safetensors"}


def test_missing_folder_is_one_clear_line(tmp_path):
  with pytest.raises(UserError, match=r"no weights in .*/none"):
    weights.load(tmp_path / "none")


def test_a_save_cut_off_before_its_config_is_no_weights(saved):
  (saved / "config.json").unlink()
  with pytest.raises(UserError, match=r"config\.json is missing"):
    weights.load(saved)


def test_missing_safetensors_is_named(saved):
  (saved / "model.safetensors").unlink()
  with pytest.raises(UserError, match=r"model\.safetensors is missing"):
    weights.load(saved)


def test_file_cut_short_is_refused(saved):
  path = saved / "model.safetensors"
  data = path.read_bytes()
  path.write_bytes(data[:-1])
  match = rf"model\.safetensors has {len(data) - 1} bytes, not {len(data)}"
  with pytest.raises(UserError, match=match):
    weights.load(saved)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_one_flipped_bit_is_refused(saved, place):
  path = saved / "model.safetensors"
  data = bytearray(path.read_bytes())
  data[place] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match="differs from its digest"):
    weights.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 1}'])
def test_config_of_another_make_is_refused(saved, text):
  (saved / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config\.json cannot be read"):
    weights.load(saved)


def test_pickled_weights_are_never_read(saved):
  record = json.loads((saved / "config.json").read_text())
  record["files"] = {"model.pkl": record["files"]["model.safetensors"]}
  (saved / "config.json").write_text(json.dumps(record))
  with pytest.raises(UserError, match=r"config\.json cannot be read"):
    weights.load(saved)


@pytest.mark.parametrize(
  "tree", [{"a/b": np.ones(1)}, {"a": [np.ones(1)]}, {"a": 1.0}, {3: {}}]
)
def test_what_has_no_name_or_no_array_is_not_saved(tmp_path, tree):
  with pytest.raises(ValueError, match=r"name for weights|is a"):
    weights.save(tmp_path / "w", tree, {})
  assert not (tmp_path / "w").exists()
