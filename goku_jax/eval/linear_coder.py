"""A linear coder of the autoencoder's own compression: PCA of blocks.

The first frame is repeated until it fills a block, as the autoencoder's own
patches have it, and a clip of 4k+1 frames is cut into blocks of the stride's
frames, height and width. Each becomes its coordinates along the directions of
the largest variance, as many as a latent has channels. No coder that is linear
in a block has a smaller squared error on the clips it was fitted to.

Letters: T H W frames, height, width, C = 3 channels; N blocks, D numbers of a
block, K latent channels.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from goku_jax.data import patches, transforms
from goku_jax.sample.codec import to_uint8


class LinearCoder(NamedTuple):
  """Directions of blocks; pixels are in [-1, 1]."""

  stride: tuple[int, int, int]  # frames, height, width of a block
  mean: np.ndarray  # [D]
  basis: np.ndarray  # [D, K], orthonormal columns


def fit(clips: Iterable[np.ndarray], stride, channels: int) -> LinearCoder:
  """The best coder of uint8 clips of 4k+1 frames; holds one at a time."""
  D = math.prod(stride) * 3
  count, total_D, square_DD = 0, np.zeros(D), np.zeros((D, D))
  for video_THWC in clips:
    blocks_ND = patches.patchify(_whole_blocks(video_THWC, stride), stride)
    count += len(blocks_ND)
    total_D += blocks_ND.sum(0)
    square_DD += blocks_ND.T @ blocks_ND
  mean_D = total_D / count
  covariance_DD = square_DD / count - np.outer(mean_D, mean_D)
  _, directions_DD = np.linalg.eigh(covariance_DD)  # by growing variance
  return LinearCoder(stride, mean_D, directions_DD[:, -channels:])


def reconstruct(coder: LinearCoder, video_THWC: np.ndarray) -> np.ndarray:
  """A uint8 clip of 4k+1 frames through the coder and back."""
  stride, (_, H, W, _) = coder.stride, video_THWC.shape
  video_THWC = _whole_blocks(video_THWC, stride)
  blocks_ND = patches.patchify(video_THWC, stride)
  codes_NK = (blocks_ND - coder.mean) @ coder.basis
  blocks_ND = codes_NK @ coder.basis.T + coder.mean
  grid = patches.token_grid(video_THWC.shape, stride)
  made_THWC = patches.unpatchify(blocks_ND, grid, stride)
  return to_uint8(made_THWC[stride[0] - 1 :, :H, :W])


def _whole_blocks(video_THWC, stride):
  """Pixels in [-1, 1] that blocks fill: the first frame and edges repeated."""
  video_THWC = transforms.pad_sides(video_THWC, stride[1:])
  copies = np.repeat(video_THWC[:1], stride[0] - 1, axis=0)
  return np.concatenate([copies, video_THWC]) / 127.5 - 1
