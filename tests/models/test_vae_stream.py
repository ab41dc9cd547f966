"""Chunks of time are exact; tiles of space are near."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import vae, vae_stream
from tests import runs

MODEL = vae.make_vae("debug", **runs.VAE_SIZES)
GROUP = vae.make_vae("debug", **runs.VAE_SIZES, norm="group")


@pytest.fixture(scope="module")
def params(fill):
  shape = jnp.zeros((1, 1, 8, 8, 3))
  return fill(jax.eval_shape(MODEL.init, jax.random.key(0), shape)["params"])


@pytest.fixture(scope="module")
def video():
  shape = (1, 21, 16, 8, 3)
  pixels = jax.random.randint(jax.random.key(1), shape, 0, 256, jnp.uint8)
  return np.asarray(pixels)


def near(a, b):
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("chunk", [4, 8, 12, 64])
def test_any_chunk_encodes_as_the_whole(params, video, chunk):
  whole = vae_stream.encode(MODEL, params, video)
  parts = vae_stream.encode(MODEL, params, video, chunk=chunk)
  assert whole[0].shape == MODEL.latent_shape(video.shape)
  jax.tree.map(near, parts, whole)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_any_chunk_decodes_as_the_whole(params, video, chunk):
  latents, _ = vae_stream.encode(MODEL, params, video)
  whole = vae_stream.decode(MODEL, params, latents)
  assert whole.shape == video.shape
  near(vae_stream.decode(MODEL, params, latents, chunk=chunk), whole)


def test_bytes_are_pixels_from_minus_one_to_one(params, video):
  floats = video.astype(np.float32) / 127.5 - 1
  jax.tree.map(
    near,
    vae_stream.encode(MODEL, params, video),
    vae_stream.encode(MODEL, params, floats),
  )


def test_group_norms_see_the_frames_of_a_chunk(params, video):
  """Nine frames first, then eight: a later frame moves its own chunk alone."""
  encode = lambda video: vae_stream.encode(GROUP, params, video)[0]
  brighter = video[:, :17].copy()
  brighter[:, 12] = 255
  before, after = encode(video[:, :17]), encode(brighter)
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  assert (before[:, 3:] != after[:, 3:]).all((0, 2, 3, 4)).all()
  same = vae_stream.encode(MODEL, params, video[:, :17])[0]
  assert np.abs(before - same).max() > 0.01 * np.abs(same).max()


def test_a_tile_as_large_as_the_frame_is_the_frame(params, video):
  whole = vae_stream.encode(MODEL, params, video)
  jax.tree.map(near, vae_stream.encode(MODEL, params, video, tile=16), whole)
  near(
    vae_stream.decode(MODEL, params, whole[0], tile=4),
    vae_stream.decode(MODEL, params, whole[0]),
  )


def test_tiles_are_blended_with_weights_that_sum_to_one():
  """Of a function of single pixels nothing is left of the tiles."""
  x = np.random.default_rng(0).standard_normal((2, 3, 20, 28, 1))
  shrunk = lambda x: x[:, :, ::4, ::4]
  out = vae_stream._tiles(shrunk, x, tile=8, shrink=4, grow=1)
  np.testing.assert_allclose(out, shrunk(x), rtol=1e-5)
  grown = lambda x: x.repeat(4, 2).repeat(4, 3)
  out = vae_stream._tiles(grown, x, tile=8, shrink=1, grow=4)
  np.testing.assert_allclose(out, grown(x), rtol=1e-5)


def test_the_program_of_a_chunk_does_not_grow_with_the_clip(params):
  """Constant memory: the second chunk and the tenth are one program."""
  vae_stream._apply.clear_cache()
  chunks = [np.zeros((1, 5, 8, 8, 3), np.uint8)]
  chunks += [np.zeros((1, 4, 8, 8, 3), np.uint8)] * 9
  outs = list(vae_stream.stream(MODEL, params, chunks, "encode"))
  assert sum(mean.shape[1] for mean, _ in outs) == 11
  assert vae_stream._apply._cache_size() == 2  # the first, all others
