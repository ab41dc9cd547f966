"""The linear coder is the best that is linear, at the compression named."""

import numpy as np
import pytest

from goku_jax.eval import linear_coder

STRIDE = (4, 2, 2)
D = 4 * 2 * 2 * 3


@pytest.fixture(scope="module")
def clips():
  """Smooth clips of 4k+1 frames and of one, with a little noise."""
  rng = np.random.default_rng(0)
  t, y, x = np.meshgrid(*map(np.arange, (9, 8, 6)), indexing="ij")
  found = []
  for frames in (9, 5, 1, 9):
    waves = [np.sin(t / 3 + rng.normal() * y / 2 + x / 3) for _ in range(3)]
    video = 128 + 90 * np.stack(waves, -1)[:frames]
    video = np.clip(video + rng.normal(0, 5, video.shape), 0, 255)
    found.append(video.astype(np.uint8))
  return found


def test_as_many_numbers_as_pixels_lose_nothing(clips):
  coder = linear_coder.fit(iter(clips), STRIDE, D)
  for video in clips:
    np.testing.assert_array_equal(linear_coder.reconstruct(coder, video), video)


def blocks_by_loops(video):
  """Blocks of a clip, the copies of its first frame before it."""
  T, H, W, _ = video.shape
  video = np.concatenate([video[:1]] * 3 + [video]).astype(np.float64)
  return np.stack(
    [
      video[t : t + 4, y : y + 2, x : x + 2].ravel()
      for t in range(0, T + 3, 4)
      for y in range(0, H, 2)
      for x in range(0, W, 2)
    ]
  )


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_it_is_the_principal_components_of_the_blocks(clips, channels):
  coder = linear_coder.fit(iter(clips), STRIDE, channels)
  blocks = np.concatenate([blocks_by_loops(video) for video in clips])
  mean = blocks.mean(0)
  _, _, directions = np.linalg.svd(blocks - mean, full_matrices=False)
  directions = directions[:channels]
  kept = (blocks_by_loops(clips[0]) - mean) @ directions.T @ directions + mean
  made = blocks_by_loops(linear_coder.reconstruct(coder, clips[0]))
  # What is one pixel in a clip is clipped and rounded there.
  inside = made[len(made) // 3 :], kept.clip(0, 255).round()[len(made) // 3 :]
  assert np.mean(inside[0] != inside[1]) < 1e-3  # a tie may round either way
  assert coder.basis.shape == (D, channels)
