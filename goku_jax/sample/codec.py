"""Latents to pixels, through the autoencoder a run was trained on, or none.

A run on latents carries the autoencoder's weights in its workdir (`vae/`,
written by `prepare` beside the latents); a run on pixels has no such folder.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from goku_jax import trees, weights
from goku_jax.models import vae, vae_stream
from goku_jax.parallel import mesh as meshes
from goku_jax.typing import UserError

FOLDER = "vae"
CHUNK = 16  # clips decoded at once


class Codec(NamedTuple):
  """What turns normalised latents into pixels; no model means identity."""

  stride: tuple[int, int, int] = (1, 1, 1)  # frames, height, width
  channels: int = 3  # of a latent
  model: Any = None
  params: Any = None
  mean: Any = 0.0  # of the latents, by channel
  std: Any = 1.0


def load_codec(folder) -> Codec:
  """The codec of a workdir or of a folder of prepared latents."""
  folder = pathlib.Path(folder) / FOLDER
  if not folder.exists():
    return Codec()
  model, config, params = load_vae(folder)
  return Codec(
    stride=tuple(model.config.stride),
    channels=model.config.latent_channels,
    model=model,
    params=params,
    mean=np.asarray(config["latent_mean"], np.float32),
    std=np.asarray(config["latent_std"], np.float32),
  )


def load_vae(folder):
  """Model, config and parameters of an autoencoder that is a weights folder.

  Raises:
    UserError: it is damaged, or holds the weights of something else.
  """
  params, config = weights.load(folder)
  if "model" not in config:
    raise UserError(f"{folder} holds weights, but of no autoencoder")
  missing = {"latent_mean", "latent_std"} - config.keys()
  if missing:
    raise UserError(f"{folder} lacks {' and '.join(sorted(missing))}")
  model = vae.make_vae(**config["model"])
  wanted = trees.shapes(vae.abstract_params(model))
  trees.check_shapes(trees.shapes(params), wanted, f"the weights in {folder}")
  return model, config, params


def latent_shape(codec: Codec, num_frames: int, height: int, width: int):
  """`(t, h, w, c)` of the latents of a clip of 4k+1 frames."""
  t, h, w = codec.stride
  return (num_frames - 1) // t + 1, height // h, width // w, codec.channels


def decode(codec: Codec, latents: list[np.ndarray]) -> list[np.ndarray]:
  """Videos uint8 `[T, H, W, 3]` of normalised latents `[t, h, w, c]`.

  Latents of one shape are decoded together, in chunks of a fixed size, so
  that each shape compiles once.
  """
  videos = [None] * len(latents)
  for shape in {x.shape for x in latents}:
    places = [i for i, x in enumerate(latents) if x.shape == shape]
    for start in range(0, len(places), CHUNK):
      here = places[start : start + CHUNK]
      # Padded with copies of the last one.
      padded = here + here[-1:] * (min(CHUNK, len(places)) - len(here))
      pixels = _pixels(codec, np.stack([latents[i] for i in padded]))
      for i, video in zip(here, pixels, strict=False):
        videos[i] = video
  return videos


def _pixels(codec: Codec, latents_BTHWC: np.ndarray) -> np.ndarray:
  video = latents_BTHWC * codec.std + codec.mean
  if codec.model:
    # Its parameters may be on one device, and one process may decode alone.
    with meshes.use(meshes.make_one_device_mesh()):
      video = vae_stream.decode(codec.model, codec.params, video)
  return to_uint8(video)


def to_uint8(video: np.ndarray) -> np.ndarray:
  """Pixels 0 to 255 of a video in [-1, 1]."""
  return np.round(np.clip(video * 127.5 + 127.5, 0, 255)).astype(np.uint8)
