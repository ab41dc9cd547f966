"""Autoencoders of others in small, their input, and what diffusers makes of it.

python tests/golden/vaes.py --write    # needs the extra `parity`
"""

import pathlib
import runpy
import sys
import tempfile
import zlib

import jax
import numpy as np

from goku_jax.convert import formats, tensors
from goku_jax.models import vae

PATH = pathlib.Path(__file__).with_name("vaes.npz")
numbers = runpy.run_path(str(PATH.with_name("goku_block.py")))["numbers"]

CONFIGS = {
  "cogvideox_vae": {
    "model": dict(
      variant="goku",
      width=8,
      multipliers=[1, 2, 2, 3],
      encoder_blocks=1,
      decoder_blocks=2,
      latent_channels=4,
      norm="group",
      groups=4,
    ),
    "latent_mean": [0.0] * 4,
    "latent_std": [1 / 0.7] * 4,
  },
  "wan_vae": {
    "model": dict(variant="wan", width=8, blocks=1, latent_channels=4),
    "latent_mean": [-0.5, 0.0, 0.1, 1.5],
    "latent_std": [2.5, 1.0, 0.5, 2.0],
  },
}
FROZEN = (1, 16, 8), (17, 8, 24)  # frames, height, width


def make(name: str):
  """The model of a format, and parameters in which everything matters."""
  model = vae.make_vae(**CONFIGS[name]["model"])
  return model, jax.tree.map_with_path(_fill, vae.abstract_params(model))


def _fill(keys, leaf):
  path = jax.tree_util.keystr(keys, simple=True, separator="/")
  x = numbers(zlib.crc32(path.encode()), *leaf.shape)
  if path.endswith("kernel"):
    # Pixels stay in [-1, 1], where diffusers does not clip them.
    gain = 0.5 if path == "decoder/conv_out/kernel" else 1.7
    return x * np.float32(gain * np.prod(leaf.shape[:-1]) ** -0.5)
  return 0.2 * x + np.float32(path.endswith("scale"))


def video(frames: int, height: int, width: int) -> np.ndarray:
  """Pixels in [-1, 1], `[1, T, H, W, 3]`."""
  return numbers(frames, 1, frames, height, width, 3)


def latents(shape) -> np.ndarray:
  """Latents of about unit variance."""
  return 1.7 * numbers(7, *shape)


def reference(name: str, folder, sizes) -> dict[str, np.ndarray]:
  """Mean, log-variance and pixels by diffusers, of each size.

  `folder` receives the weights in diffusers' layout.
  """
  import diffusers
  import torch

  row = formats.FORMATS[name]
  tensors.write(folder, *row.write(make(name)[1], CONFIGS[name]))
  kind = {"cogvideox_vae": "AutoencoderKLCogVideoX"}.get(
    name, "AutoencoderKLWan"
  )
  model = getattr(diffusers, kind).from_pretrained(folder)
  to = lambda x: torch.tensor(x).movedim(-1, 1)
  back = lambda x: x.movedim(1, -1).numpy()
  out = {}
  with torch.no_grad():
    for size in sizes:
      key = "{}x{}x{}".format(*size)
      posterior = model.encode(to(video(*size))).latent_dist
      out[f"mean_{key}"] = back(posterior.mean)
      out[f"logvar_{key}"] = back(posterior.logvar)
      z = latents(out[f"mean_{key}"].shape)
      out[f"pixels_{key}"] = back(model.decode(to(z)).sample)
  return out


def main():
  """Writes the arrays anew."""
  arrays = {}
  for name in CONFIGS:
    with tempfile.TemporaryDirectory() as folder:
      for key, array in reference(name, folder, FROZEN).items():
        arrays[f"{name}/{key}"] = array
  np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
  if sys.argv[1:] != ["--write"]:
    sys.exit(__doc__)
  main()
