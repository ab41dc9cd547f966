"""Clips to latents: the encoding half of an autoencoder, by shape.

Letters: T H W frames, height, width.
"""

import concurrent.futures
import contextlib
import math
import queue

import jax
import numpy as np

from goku_jax.models import vae_stream
from goku_jax.sample.codec import by_shape
from goku_jax.typing import UserError

PIXELS = 1 << 22  # of the clips encoded at once
MOST = 64  # of them


class Encoder:
  """An autoencoder on every device of this process.

  Args:
    model: a `vae.VAE`.
    params: its parameters.
    chunk: frames it sees at once, a multiple of the stride; 0: all.
    tile: pixels of the sides of tiles; 0: whole frames.
  """

  def __init__(self, model, params, *, chunk: int = 0, tile: int = 0):
    self.model, self.chunk, self.tile = model, chunk or None, tile or None
    copies = [jax.device_put(params, device) for device in jax.local_devices()]
    self.params = copies[0]
    # Last in, first out: work that comes one by one compiles on one device.
    self._free = queue.LifoQueue()
    for copy in reversed(copies):
      self._free.put(copy)
    self.num_devices = len(copies)

  def check(self, shape):
    """Raises `UserError` unless clips `[T, H, W, 3]` can be encoded."""
    self.model.latent_shape((1, *shape))

  def check_multiple(self, multiple: int):
    """Raises `UserError` unless all sides that are multiples can be encoded."""
    _, height, width = self.model.config.stride
    if multiple % height or multiple % width:
      raise UserError(
        f"data.clips.multiple={multiple} is not one of the autoencoder's stride"
        f" {height}x{width}: set a multiple of that"
      )

  @contextlib.contextmanager
  def borrow(self):
    """The parameters on a device that nobody else encodes on meanwhile."""
    params = self._free.get()
    try:
      yield params
    finally:
      self._free.put(params)


def encode(
  encoder: Encoder, videos: list[np.ndarray], at_once: int = 0
) -> list[tuple]:
  """Posterior mean and log-variance `[t, h, w, c]` of clips `[T, H, W, 3]`.

  Clips (uint8) of one shape go together, `at_once` or as many as the shape
  says, the last ones beside copies: so each shape compiles once a device. All
  devices encode beside each other.
  """
  moments = [None] * len(videos)

  def run(here, padded):
    clips = np.stack([videos[i] for i in padded])
    with encoder.borrow() as params:
      means, logvars = vae_stream.encode(
        encoder.model, params, clips, chunk=encoder.chunk, tile=encoder.tile
      )
    for i, mean, logvar in zip(here, means, logvars, strict=False):
      moments[i] = mean, logvar

  size = lambda shape, _: (
    at_once or min(MOST, max(1, PIXELS // math.prod(shape[:3])))
  )
  parts = list(by_shape([video.shape for video in videos], size))
  if len(parts) == 1:
    run(*parts[0])
    return moments
  with concurrent.futures.ThreadPoolExecutor(encoder.num_devices) as pool:
    for done in [pool.submit(run, *part) for part in parts]:
      done.result()
  return moments
