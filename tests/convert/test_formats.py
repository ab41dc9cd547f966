"""Weights there and back, bit for bit; what does not fit is told in a line."""

import json
import pathlib
import runpy
import subprocess
import sys

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from goku_jax import files, weights
from goku_jax.convert import __main__ as main
from goku_jax.convert import formats, tensors
from goku_jax.models import vae
from goku_jax.typing import UserError
from tests import runs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SCRIPT = runpy.run_path(str(GOLDEN / "vaes.py"))
NAMES = list(SCRIPT["CONFIGS"])


def convert(source, name, out, *, reverse=False, **options):
  return formats.convert(source, name, out, reverse=reverse, **options)


def write_theirs(name, folder, change=None, **config):
  """A folder in diffusers' layout, its tensors or its config changed."""
  row = formats.FORMATS[name]
  found, theirs = row.write(SCRIPT["make"](name)[1], SCRIPT["CONFIGS"][name])
  if change:
    change(found)
  tensors.write(folder, found, theirs | config)
  return folder / tensors.WEIGHTS


def to_bfloat16(found):
  for name, x in found.items():
    found[name] = x.astype(jnp.bfloat16)


@pytest.mark.parametrize("change", [None, to_bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_has_the_same_bits(name, change, tmp_path):
  more = {"sample_height": 480, "_diffusers_version": "0.42.1"}
  path = write_theirs(name, tmp_path / "theirs", change, **more)
  result = convert(tmp_path / "theirs", name, tmp_path / "ours")
  convert(tmp_path / "ours", name, tmp_path / "back", reverse=True)
  back = tmp_path / "back" / tensors.WEIGHTS
  chex.assert_trees_all_equal(
    safetensors.numpy.load_file(back), safetensors.numpy.load_file(path)
  )
  assert back.read_bytes() == path.read_bytes()
  read = lambda name: json.loads((tmp_path / name / "config.json").read_text())
  assert read("back") == read("theirs")
  tree, config = weights.load(tmp_path / "ours")
  assert {x.dtype for x in weights._flatten(tree).values()} == {
    np.dtype(np.float32)
  }
  for key in ("latent_mean", "latent_std"):
    assert result[key] == config[key]
    np.testing.assert_allclose(config[key], SCRIPT["CONFIGS"][name][key])


@pytest.mark.parametrize("name", NAMES)
def test_our_tree_survives_the_way_through_theirs(name, tmp_path):
  model, tree = SCRIPT["make"](name)
  path = write_theirs(name, tmp_path)
  got, config = formats.FORMATS[name].read(
    path, sha256=files.digest_file(path).upper()
  )
  chex.assert_trees_all_equal(got, tree)
  assert vae.make_vae(**config["model"]).config == model.config


def test_a_wrong_digest_is_refused(tmp_path):
  path = write_theirs("wan_vae", tmp_path)
  with pytest.raises(UserError, match="another digest than --sha256=00"):
    convert(path, "wan_vae", tmp_path / "out", sha256="00")


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_cut_short_is_refused(size, tmp_path):
  path = write_theirs("wan_vae", tmp_path)
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(UserError, match="is cut short or not safetensors"):
    convert(path, "wan_vae", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def spoil(found):
  del found["encoder.conv_in.weight"], found["quant_conv.bias"]
  found["decoder.extra.weight"] = np.zeros(3, np.float32)
  found["decoder.conv_in.bias"] = np.zeros(5, np.float32)


def test_all_that_differs_in_the_architecture_is_told_at_once(tmp_path):
  path = write_theirs("wan_vae", tmp_path, spoil)
  with pytest.raises(UserError) as error:
    convert(path, "wan_vae", tmp_path / "out")
  assert str(error.value) == (
    "the weights are not of this architecture: 2 missing"
    " (encoder.conv_in.weight), 1 unexpected (decoder.extra.weight),"
    " 1 misshapen (decoder.conv_in.bias (5,) for (32,))"
  )


@pytest.mark.parametrize(
  ("name", "config", "words"),
  [
    ("wan_vae", dict(is_residual=True), "is_residual=True: only False"),
    ("wan_vae", dict(patch_size=2), "patch_size=2: only None"),
    ("wan_vae", dict(decoder_base_dim=9), "decoder_base_dim is not base_dim"),
    ("wan_vae", dict(temperal_downsample=[True, False, True]), "the deepest"),
    (
      "wan_vae",
      dict(_class_name="AutoencoderKL"),
      "is of a AutoencoderKL, not",
    ),
    ("cogvideox_vae", dict(norm_eps=1e-5), "norm_eps=1e-05: only 1e-06"),
    ("cogvideox_vae", dict(block_out_channels=[8, 12]), "are not multiples"),
    ("cogvideox_vae", dict(layers_per_block=2), "architecture: 96 missing"),
  ],
)
def test_a_config_of_another_network_is_refused(name, config, words, tmp_path):
  write_theirs(name, tmp_path, **config)
  with pytest.raises(UserError, match=words):
    convert(tmp_path, name, tmp_path / "out")


def test_a_source_without_config_or_with_many_files_is_refused(tmp_path):
  path = write_theirs("wan_vae", tmp_path)
  path.with_name("b.safetensors").write_bytes(b"")
  with pytest.raises(UserError, match=r"b\.safetensors, diff.*: name the one"):
    convert(tmp_path, "wan_vae", tmp_path / "out")
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match="is of a None, not"):
    convert(path, "wan_vae", tmp_path / "out")
  (tmp_path / "config.json").unlink()
  with pytest.raises(UserError, match=r"config\.json, which belongs"):
    convert(path, "wan_vae", tmp_path / "out")
  with pytest.raises(UserError, match=r"has no \.safetensors"):
    convert(tmp_path / "none", "wan_vae", tmp_path / "out")


def test_what_diffusers_cannot_have_is_not_written(tmp_path):
  for name, other in (NAMES, reversed(NAMES)):
    weights.save(tmp_path, SCRIPT["make"](other)[1], SCRIPT["CONFIGS"][other])
    with pytest.raises(UserError, match="these weights"):
      convert(tmp_path, name, tmp_path / "out", reverse=True)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (
      dict(name="odd"),
      "--format=odd is not one of cogvideox_vae, wan_vae, ",
    ),
    (dict(name="run", reverse=True), "--format=run has no --reverse"),
    (dict(name="wan_vae", step=3), "--step does not go with --format=wan_vae"),
    (dict(name="wan_vae", out="same"), "--out=same is the source"),
  ],
)
def test_flags_that_do_not_fit_are_refused(arguments, words):
  with pytest.raises(UserError, match=words):
    convert(**{"source": "same", "out": "out"} | arguments)


def test_the_job_ends_with_2_and_one_line(tmp_path):
  path = write_theirs("wan_vae", tmp_path)
  command = [sys.executable, "-m", "goku_jax.convert", "--format=wan_vae"]
  command += [f"--source={path}", f"--out={tmp_path / 'ours'}", "--sha256=0"]
  done = subprocess.run(
    command, cwd=runs.ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.endswith("has another digest than --sha256=0")


def test_the_job_returns_what_it_wrote(tmp_path):
  write_theirs("wan_vae", tmp_path / "theirs")
  out = str(tmp_path / "ours")
  result = main.main(str(tmp_path / "theirs"), "wan_vae", out, False)
  tree, config = weights.load(out)
  assert result["model"] == config["model"]
  leaves = weights._flatten(tree).values()
  assert result["parameters"] == sum(x.size for x in leaves)
