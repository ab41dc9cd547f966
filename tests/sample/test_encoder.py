"""Clips are encoded on every device, each as it is alone."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import vae, vae_stream
from goku_jax.sample import encoder
from goku_jax.typing import UserError

SHAPES = ((1, 8, 8), (5, 8, 8), (1, 16, 8))


@pytest.fixture(scope="module")
def encode_by():
  model = vae.make_vae("debug")
  init = jax.jit(lambda rng: model.init(rng, jnp.zeros((1, 5, 8, 8, 3))))
  return encoder.Encoder(model, init(jax.random.key(0))["params"])


def clips(count=2):
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.integers(0, 256, (*shape, 3), np.uint8)
  return [draw(shape) for _ in range(count) for shape in SHAPES]


def test_each_clip_has_its_own_latents_in_the_order_given(encode_by):
  videos = clips()
  for video, found in zip(
    videos, encoder.encode(encode_by, videos), strict=True
  ):
    alone = vae_stream.encode(encode_by.model, encode_by.params, video[None])
    for one, two in zip(found, alone, strict=True):
      np.testing.assert_allclose(one, two[0], rtol=1e-4, atol=1e-5)


def test_shapes_go_to_devices_of_their_own(encode_by, monkeypatch):
  """Each of three waits until all three are at it."""
  meet = threading.Barrier(len(SHAPES), timeout=60)
  devices = set()

  def together(model, params, video, **options):
    meet.wait()
    devices.add(jax.tree.leaves(params)[0].device)
    return np.zeros((2, len(video)))

  monkeypatch.setattr(vae_stream, "encode", together)
  encoder.encode(encode_by, clips(1))
  assert len(devices) == len(SHAPES)


def test_a_device_is_free_again_after_a_failure(encode_by, monkeypatch):
  def fail(*args, **options):
    raise RuntimeError("out of memory")

  with monkeypatch.context() as patched:
    patched.setattr(vae_stream, "encode", fail)
    for _ in range(encode_by.num_devices + 1):
      with pytest.raises(RuntimeError, match="out of memory"):
        encoder.encode(encode_by, clips(1))
  assert len(encoder.encode(encode_by, clips(1)[:1])) == 1


def test_one_after_the_other_stays_on_one_device(encode_by):
  with encode_by.borrow() as params:
    pass
  with encode_by.borrow() as again:
    assert again is params


def test_sides_that_the_stride_does_not_divide_are_refused(encode_by):
  with pytest.raises(UserError, match=r"data\.clips\.multiple=13 is not"):
    encode_by.check_multiple(13)
