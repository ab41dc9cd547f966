"""Autoencoders of others give under our names what they give in diffusers.

The plain suite compares with frozen arrays; `--parity` with diffusers itself.
"""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from goku_jax.convert import formats
from goku_jax.models import vae, vae_stream

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
SCRIPT = runpy.run_path(str(FOLDER / "vaes.py"))
NAMES = list(SCRIPT["CONFIGS"])
# Frames, height and width; the latents have odd sides.
SIZES = (1, 8, 8), (1, 24, 40), (9, 40, 24), (17, 8, 56), (33, 24, 24)


def compare(name, tree, expected):
  """Relative to the largest value of each array."""
  model = vae.make_vae(**SCRIPT["CONFIGS"][name]["model"])
  sizes = {key.partition("_")[2] for key in expected}
  for key in sizes:
    size = tuple(map(int, key.split("x")))
    z = SCRIPT["latents"](expected[f"mean_{key}"].shape)
    mean, logvar = vae_stream.encode(model, tree, SCRIPT["video"](*size))
    pixels = vae_stream.decode(model, tree, z)
    if name == "wan_vae":  # diffusers clips what it decodes
      pixels = np.clip(pixels, -1, 1)
    out = {"mean": mean, "logvar": logvar, "pixels": pixels}
    for kind, array in out.items():
      want = expected[f"{kind}_{key}"]
      assert array.shape == want.shape
      error = np.abs(array - want).max() / np.abs(want).max()
      print(f"{name} {kind} {key}: {error:.1e}")
      assert error < 1e-4, (name, kind, key)


def frozen(name):
  with np.load(FOLDER / "vaes.npz") as arrays:
    return {k.partition("/")[2]: arrays[k] for k in arrays if name in k}


@pytest.mark.parametrize("name", NAMES)
def test_frozen_arrays_of_diffusers_are_met(name):
  compare(name, SCRIPT["make"](name)[1], frozen(name))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_diffusers_gives_the_same_now(name, tmp_path):
  """It has loaded what we wrote, and we read what it would save."""
  sizes = (*SIZES, *SCRIPT["FROZEN"])
  expected = SCRIPT["reference"](name, tmp_path, sizes)
  tree, _ = formats.FORMATS[name].read(tmp_path)
  compare(name, tree, expected)
  for key, array in frozen(name).items():
    np.testing.assert_allclose(expected[key], array, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
  ("name", "variant", "kind"),
  [
    ("cogvideox_vae", dict(variant="goku", norm="group"), "CogVideoX"),
    ("wan_vae", dict(variant="wan"), "Wan"),
  ],
)
def test_the_published_size_has_the_tensors_of_diffusers(name, variant, kind):
  import diffusers
  import torch

  with torch.device("meta"):
    theirs = getattr(diffusers, f"AutoencoderKL{kind}")()
  abstract = vae.abstract_params(vae.make_vae(**variant))
  # Views of one zero: nothing of the size is there.
  tree = jax.tree.map(
    lambda x: np.broadcast_to(np.zeros((), np.bool_), x.shape), abstract
  )
  config = {
    "model": variant,
    "latent_mean": [0.0] * 16,
    "latent_std": [1.0] * 16,
    "diffusers": {"dtype": "bool"},
  }
  found, written = formats.FORMATS[name].write(tree, config)
  shapes = {n: tuple(x.shape) for n, x in theirs.state_dict().items()}
  assert {n: x.shape for n, x in found.items()} == shapes
  own = json.loads(theirs.to_json_string())
  differing = {k for k, v in written.items() if own.get(k) != v}
  assert differing <= {"scaling_factor", "latents_mean", "latents_std"}
