"""A mean over each sample's own tokens, and nothing of padding."""

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.flow import loss

IDS = jnp.array([[1, 1, 1, 2, 0], [2, 2, 3, 3, 3]])
ERROR = jax.random.normal(jax.random.key(0), (2, 5, 4))


def test_each_sample_gets_the_mean_of_its_own_squares():
  out = loss.mean_square_by_segment(ERROR, IDS, 4)
  square = np.square(ERROR)
  expected = [
    [square[b][IDS[b] == g].mean() if (IDS[b] == g).any() else 0 for g in row]
    for b, row in enumerate([[1, 2, 3, 4]] * 2)
  ]
  np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_a_long_sample_weighs_no_more_than_a_short_one():
  out = loss.mean_square_by_segment(jnp.ones_like(ERROR), IDS, 3)
  np.testing.assert_array_equal(out, [[1, 1, 0], [0, 1, 1]])


def test_padding_has_no_gradient_and_halves_are_summed_in_float32():
  total = lambda error: loss.mean_square_by_segment(error, IDS, 3).sum()
  grad = jax.grad(total)(ERROR)
  assert (np.asarray(grad)[np.asarray(IDS) == 0] == 0).all()
  half = loss.mean_square_by_segment(ERROR.astype(jnp.bfloat16), IDS, 3)
  assert half.dtype == jnp.float32
