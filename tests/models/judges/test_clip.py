"""CLIP's towers: what padding and neighbours may change, and unit lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models.judges import clip

CONFIG = clip.CLIPConfig(
  image=clip.Tower(width=24, depth=2, num_heads=3, mlp_width=32),
  text=clip.Tower(width=20, depth=3, num_heads=2, mlp_width=32),
  embedding=8,
  image_size=24,
  patch=8,
  vocab_size=50,
  max_text=16,
)


@pytest.fixture(scope="module")
def towers(fill):
  params = fill(clip.abstract_params(CONFIG))

  def run(name, model):
    return jax.jit(lambda *args: model.apply({"params": params[name]}, *args))

  return (
    run("image", clip.ImageTower(CONFIG)),
    run("text", clip.TextTower(CONFIG)),
  )


def texts():
  ids = np.random.default_rng(0).integers(0, 50, (4, 16), np.int32)
  return jnp.asarray(ids), jnp.array([1, 5, 15, 9], jnp.int32)


def test_what_stands_behind_the_end_of_a_text_changes_nothing(towers):
  ids, end = texts()
  out = towers[1](ids, end)
  behind = jnp.arange(16) > end[:, None]
  others = jnp.where(behind, (ids + 7) % 50, ids)
  np.testing.assert_array_equal(towers[1](others, end), out)
  short = towers[1](ids[:2, :6], end[:2])
  np.testing.assert_allclose(short, out[:2], rtol=0, atol=1e-5)


def test_each_token_before_the_end_counts_and_so_does_its_place(towers):
  ids, end = texts()
  out = towers[1](ids, end)
  for place in (0, 4, 14):
    other = towers[1](ids.at[2, place].add(1), end)
    assert np.abs(other[2] - out[2]).max() > 1e-3
  turned = ids.at[2, :15].set(ids[2, 14::-1])
  assert np.abs(towers[1](turned, end)[2] - out[2]).max() > 1e-3


def test_every_patch_of_an_image_counts(towers):
  image = jnp.zeros((1, 24, 24, 3))
  out = towers[0](image)
  made = set()
  for row in (0, 8, 16):
    for column in (0, 8, 16):
      x = towers[0](image.at[0, row + 3, column + 4, 1].set(5.0))
      made.add(np.asarray(x).tobytes())
      assert np.abs(x - out).max() > 1e-4
  assert len(made) == 9


def test_embeddings_have_unit_length_and_are_each_their_own(towers):
  images = jax.random.normal(jax.random.key(1), (3, 24, 24, 3))
  together = towers[0](images)
  alone = towers[0](images[1:2])
  np.testing.assert_allclose(together[1:2], alone, rtol=0, atol=1e-5)
  for x in (together, towers[1](*texts())):
    assert x.shape == (len(x), 8)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)
