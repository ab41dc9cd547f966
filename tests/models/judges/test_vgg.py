"""VGG16's convolutions: of small maps what they are of large ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models.judges import vgg


@pytest.mark.parametrize("sides", [(1, 1), (1, 4), (2, 2), (4, 2), (3, 3)])
def test_maps_smaller_than_the_window_are_convolved_alike(sides):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  params = {"kernel": draw(3, 3, 5, 6), "bias": draw(6)}
  conv = nn.Conv(6, (3, 3), precision="highest").bind({"params": params})
  x = draw(2, *sides, 5)
  whole = jnp.zeros((2, 9, 9, 5)).at[:, : sides[0], : sides[1]].set(x)
  # Zeros stand outside the map in both.
  expected = conv(whole)[:, : sides[0], : sides[1]]
  found = jax.jit(lambda x: vgg._small(conv, x))(x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  slope = lambda fn: jax.grad(lambda x: jnp.square(fn(x)).sum())(x)
  np.testing.assert_allclose(
    slope(lambda x: vgg._small(conv, x)), slope(conv), rtol=1e-4, atol=1e-4
  )
