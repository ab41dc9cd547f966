"""Clips of any length and size through the autoencoder, piece by piece.

In time, a chunk takes on where the one before ended, exactly: memory stays
that of one chunk. In space, tiles overlap and are blended, which is near and
not exact, since a norm sees the whole of a frame.

Letters: B clips, T H W frames, height, width, C channels; t h w of latents.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.models.vae import VAE

# Frames of CogVideoX's chunks, whose group norms run over the chunk.
GROUP_CHUNK = {"encode": 8, "decode": 2}


def encode(model: VAE, params, video_BTHWC, *, chunk=None, tile=None):
  """Posterior mean and log-variance of whole clips.

  Args:
    model: the autoencoder.
    params: its parameters.
    video_BTHWC: 4k+1 frames, uint8 or in [-1, 1]; sides that the stride
      divides.
    chunk: frames encoded at once, a multiple of the stride; None: all, or as
      the norm `group` has them.
    tile: pixels of a side of the tiles; None: whole frames.

  Returns:
    Two numpy arrays `[B, t, h, w, c]`.
  """
  run = lambda x: np.concatenate(_whole(model, params, x, "encode", chunk), -1)
  if tile:
    side = model.config.stride[1]
    run = functools.partial(_tiles, run, tile=tile, shrink=side, grow=1)
  return tuple(np.split(run(video_BTHWC), 2, -1))


def decode(model: VAE, params, latents_BTHWC, *, chunk=None, tile=None):
  """Pixels, about [-1, 1], of whole clips of latents, as a numpy array.

  `chunk` is in latent frames and `tile` in latent positions; see `encode`.
  """
  run = lambda x: _whole(model, params, x, "decode", chunk)
  if tile:
    side = model.config.stride[1]
    run = functools.partial(_tiles, run, tile=tile, shrink=1, grow=side)
  return run(latents_BTHWC)


def stream(
  model: VAE, params, chunks: Iterable, method: str
) -> Iterator[jax.Array]:
  """Encodes or decodes one chunk of a clip after the other.

  The first chunk of frames has 4k+1, all others 4k (for a stride of 4 in
  time); chunks of latents have any number.
  """
  context = {}
  for i, chunk in enumerate(chunks):
    chunk = jax.device_put(chunk)
    out, context = _apply(model, method, i == 0, params, context, chunk)
    yield out


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(model, method, is_first, params, context, x_BTHWC):
  if x_BTHWC.dtype == jnp.uint8:
    x_BTHWC = x_BTHWC.astype(jnp.float32) / 127.5 - 1
  return model.apply(
    {"params": params} | context,
    x_BTHWC,
    is_first=is_first,
    method=method,
    mutable=("context",),
  )


def _whole(model, params, x_BTHWC, method, chunk):
  """All chunks of a clip, joined on the host."""
  if model.config.norm == "group":
    chunk = GROUP_CHUNK[method]
  T = x_BTHWC.shape[1]
  count = max(T // chunk, 1) if chunk else 1
  # The first chunk takes the remainder, in it the frame that stands alone.
  ends = [T - chunk * i for i in reversed(range(1, count))] if chunk else []
  chunks = (x_BTHWC[:, a:b] for a, b in itertools.pairwise([0, *ends, T]))
  outs = [jax.device_get(x) for x in stream(model, params, chunks, method)]
  return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *outs)


def _tiles(fn, x_BTHWC, *, tile: int, shrink: int, grow: int):
  """`fn` of overlapping tiles, its outputs blended linearly.

  A quarter of a tile overlaps the next; all have one size, so that one
  program serves them.
  """
  H, W = x_BTHWC.shape[2:4]
  overlap = tile // 4 // shrink * shrink
  scale = lambda n: n // shrink * grow
  total = weights = 0.0
  for top in _starts(H, tile, overlap):
    for left in _starts(W, tile, overlap):
      out = fn(x_BTHWC[:, :, top : top + tile, left : left + tile])
      _, _, h, w, _ = out.shape
      ramp = np.multiply.outer(*(_ramp(n, scale(overlap)) for n in (h, w)))
      if top == left == 0:
        total = np.zeros((*out.shape[:2], scale(H), scale(W), out.shape[-1]))
        weights = np.zeros((scale(H), scale(W), 1))
      where = (
        slice(scale(top), scale(top) + h),
        slice(scale(left), scale(left) + w),
      )
      total[:, :, *where] += out * ramp[..., None]
      weights[where] += ramp[..., None]
  return (total / weights).astype(np.float32)


def _starts(size, tile, overlap):
  """First pixels of tiles over a side; the last one ends with it."""
  if size <= tile:
    return [0]
  return [*range(0, size - tile, tile - overlap), size - tile]


def _ramp(length, overlap):
  """Weights that rise over the overlap, stay at 1, and fall."""
  rise = (np.arange(length) + 1) / (overlap + 1)
  return np.minimum(1, np.minimum(rise, rise[::-1]))
