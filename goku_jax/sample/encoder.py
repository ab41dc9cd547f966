"""Clips to latents: the encoding half of an autoencoder, by shape.

Letters: T H W frames, height, width.
"""

from typing import Any, NamedTuple

import numpy as np

from goku_jax.models import vae, vae_stream
from goku_jax.typing import UserError

PIXELS = 1 << 22  # of the clips encoded at once
MOST = 64  # of them


class Encoder(NamedTuple):
  """An autoencoder, and how much of a clip it sees at once."""

  model: vae.VAE
  params: Any  # on the device
  chunk: int = 0  # frames, a multiple of the stride; 0: all
  tile: int = 0  # pixels of the sides of tiles; 0: whole frames

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


def encode(
  encoder: Encoder, videos: list[np.ndarray], at_once: int = 0
) -> list[tuple]:
  """Posterior mean and log-variance `[t, h, w, c]` of clips `[T, H, W, 3]`.

  Clips (uint8) of one shape go together, `at_once` or as many as the shape
  says, the last ones beside copies: so each shape compiles once.
  """
  moments = [None] * len(videos)
  for shape in dict.fromkeys(video.shape for video in videos):
    places = [i for i, video in enumerate(videos) if video.shape == shape]
    size = at_once or min(MOST, max(1, PIXELS // int(np.prod(shape[:3]))))
    for start in range(0, len(places), size):
      here = places[start : start + size]
      padded = here + here[-1:] * (size - len(here))
      means, logvars = vae_stream.encode(
        encoder.model,
        encoder.params,
        np.stack([videos[i] for i in padded]),
        chunk=encoder.chunk or None,
        tile=encoder.tile or None,
      )
      for i, mean, logvar in zip(here, means, logvars, strict=False):
        moments[i] = mean, logvar
  return moments
