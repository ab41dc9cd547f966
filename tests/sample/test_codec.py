"""Latents to pixels: in batches, on all devices, streamed, in their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import vae
from goku_jax.parallel import mesh as meshes
from goku_jax.sample import codec as codecs


@pytest.fixture(scope="module")
def codec():
  model = vae.make_vae("debug")
  init = jax.jit(lambda rng: model.init(rng, jnp.zeros((1, 5, 8, 8, 3))))
  return codecs.Codec(
    stride=tuple(model.config.stride),
    channels=model.config.latent_channels,
    model=model,
    params=init(jax.random.key(0))["params"],
  )


def latents_of(codec, *shapes):
  draw = np.random.default_rng(0).standard_normal
  return [draw((*shape, codec.channels), "f4") for shape in shapes]


def test_each_clip_comes_as_alone_in_its_place(codec):
  latents = latents_of(codec, *[(2, 2, 2), (1, 2, 4)] * (codecs.BATCH + 2))
  with meshes.use(meshes.make_mesh(fsdp=8)):
    found = codecs.decode(codec, latents)
  assert len(found) == len(latents)
  for i in (0, 1, len(latents) - 2, len(latents) - 1):
    (alone,) = codecs.decode(codec, [latents[i]])
    assert found[i].dtype == np.uint8
    assert np.abs(found[i].astype(int) - alone).max() <= 1  # by rounding


def test_a_clip_too_long_to_go_at_once_is_streamed(codec, monkeypatch):
  (latent,) = latents_of(codec, (5, 2, 2))
  (whole,) = codecs.decode(codec, [latent])
  pixels = latent[..., 0].size // 5 * np.prod(codec.stride)
  monkeypatch.setattr(codecs, "PIXELS", 2 * pixels)
  (streamed,) = codecs.decode(codec, [latent])
  assert np.abs(whole.astype(int) - streamed).max() <= 1


def test_pixels_need_no_autoencoder():
  video = np.linspace(-1, 1, 3 * 4 * 4 * 3).reshape(3, 4, 4, 3)
  (found,) = codecs.decode(codecs.Codec(), [video])
  np.testing.assert_array_equal(found, codecs.to_uint8(video))
