"""What `conftest.py` promises every test is really there."""

import os

import av
import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from goku_jax.flow import path


def test_there_are_eight_pretend_devices():
  assert jax.device_count() == 8
  assert {device.platform for device in jax.devices()} == {"cpu"}


def test_shapes_of_annotated_functions_are_checked():
  with pytest.raises(jaxtyping.TypeCheckError):
    path.velocity(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_compilation_cache_is_in_the_checkout_and_ignored(pytestconfig):
  cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
  assert cache.startswith(str(pytestconfig.rootpath / ".cache"))
  assert ".cache/" in (pytestconfig.rootpath / ".gitignore").read_text()


@pytest.mark.parametrize(
  ("name", "num_frames", "width"),
  [("bigbuckbunny", 132, 1280), ("bikes", 250, 640)],
)
def test_real_videos_decode(real_videos, name, num_frames, width):
  with av.open(str(real_videos[name])) as container:
    frames = [frame.width for frame in container.decode(video=0)]
  assert frames == [width] * num_frames
