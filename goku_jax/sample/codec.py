"""Latents to pixels, through the autoencoder a run was trained on, or none.

A run on latents carries the autoencoder's weights in its workdir (`vae/`,
written by `prepare` beside the latents); a run on pixels has no such folder.
"""

import concurrent.futures
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from goku_jax import trees, weights
from goku_jax.models import vae, vae_stream
from goku_jax.typing import UserError

FOLDER = "vae"
BATCH = 16  # clips decoded at once, or fewer:
PIXELS = 1 << 23  # of them together; of a longer clip, those at once


class Codec(NamedTuple):
  """What turns normalised latents into pixels; no model means identity."""

  stride: tuple[int, int, int] = (1, 1, 1)  # frames, height, width
  channels: int = 3  # of a latent
  model: Any = None
  params: Any = None
  mean: Any = 0.0  # of the latents, by channel
  std: Any = 1.0

  @property
  def statistics(self) -> dict:
    """By which latents are scaled, as JSON has them."""
    return {
      "latent_mean": np.asarray(self.mean).tolist(),
      "latent_std": np.asarray(self.std).tolist(),
    }


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


def encode(codec: Codec, video_BTHWC: np.ndarray) -> np.ndarray:
  """Normalised latents `[B, t, h, w, c]` of uint8 clips: posterior means."""
  if codec.model is None:
    return video_BTHWC.astype(np.float32) / 127.5 - 1
  mean, _ = vae_stream.encode(codec.model, codec.params, video_BTHWC)
  return (mean - codec.mean) / codec.std


def decode(codec: Codec, latents: list[np.ndarray]) -> list[np.ndarray]:
  """Videos uint8 `[T, H, W, 3]` of normalised latents `[t, h, w, c]`.

  Latents of one shape are decoded together, in batches of a fixed size, so
  that each shape compiles once a device; the devices of this process work
  beside each other. Long clips are streamed, which changes nothing.
  """
  videos = [None] * len(latents)
  parts = list(
    by_shape([x.shape for x in latents], functools.partial(_size, codec))
  )
  devices = jax.local_devices()

  def run(device, parts):
    params = jax.device_put(codec.params, device)
    for here, padded in parts:
      batch = np.stack([latents[i] for i in padded])
      for i, video in zip(here, _pixels(codec, params, batch), strict=False):
        videos[i] = video

  # Threads of their own: the mesh of the one that asks is of all processes.
  with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
    shares = (parts[i :: len(devices)] for i in range(len(devices)))
    work = zip(devices, filter(None, shares), strict=False)
    for done in [pool.submit(run, *share) for share in work]:
      done.result()
  return videos


def decode_together(codec: Codec, latents: list[np.ndarray]):
  """`decode` of latents of one shape, its work shared by all processes.

  All call it with the same latents, and get all videos.
  """
  count = jax.process_count()
  if count == 1:
    return decode(codec, latents)
  rows = -(-len(latents) // count)
  own = [latents[i] for i in range(jax.process_index(), len(latents), count)]
  videos = decode(codec, own + latents[:1] * (rows - len(own)))
  gathered = multihost_utils.process_allgather(np.stack(videos))
  return [gathered[i % count, i // count] for i in range(len(latents))]


def by_shape(shapes: list[tuple], size_of: Callable[[tuple, int], int]):
  """Places of things of one shape that go together, some at once.

  Args:
    shapes: of all, in their order.
    size_of: how many of a shape go at once, out of its count.

  Yields:
    tuple: places, and the same with copies of the last one where there are
    fewer than go at once: so each shape compiles once a device.
  """
  for shape in dict.fromkeys(shapes):
    places = [i for i, other in enumerate(shapes) if other == shape]
    size = size_of(shape, len(places))
    for start in range(0, len(places), size):
      here = places[start : start + size]
      yield here, here + here[-1:] * (size - len(here))


def _size(codec, shape, count):
  pixels = math.prod(shape[:3]) * math.prod(codec.stride)
  return min(BATCH, max(1, PIXELS // pixels), count)


def _pixels(codec: Codec, params, latents_BTHWC: np.ndarray) -> np.ndarray:
  video = latents_BTHWC * codec.std + codec.mean
  if codec.model:
    B, _, H, W, _ = video.shape
    frames = PIXELS // (B * H * W * math.prod(codec.stride))
    video = vae_stream.decode(codec.model, params, video, chunk=max(frames, 1))
  return to_uint8(video)


def to_uint8(video: np.ndarray) -> np.ndarray:
  """Pixels 0 to 255 of a video in [-1, 1]."""
  return np.round(np.clip(video * 127.5 + 127.5, 0, 255)).astype(np.uint8)
