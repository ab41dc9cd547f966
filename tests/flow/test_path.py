"""The straight path: its ends and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.flow import path

DATA, NOISE = jax.random.normal(jax.random.key(0), (2, 3, 5))


def test_time_zero_is_noise_and_time_one_is_data():
  at = lambda t: path.interpolate(DATA, NOISE, jnp.full((3, 1), t))
  np.testing.assert_array_equal(at(0.0), NOISE)
  np.testing.assert_array_equal(at(1.0), DATA)


def test_velocity_is_the_derivative_of_the_path():
  at = lambda t: path.interpolate(DATA, NOISE, t)
  for t in (0.0, 0.3, 1.0):
    _, derivative = jax.jvp(at, (jnp.array(t),), (jnp.array(1.0),))
    np.testing.assert_allclose(
      derivative, path.velocity(DATA, NOISE), rtol=1e-5, atol=1e-6
    )


def test_each_row_has_its_own_time():
  t = jnp.array([[0.0], [0.5], [1.0]])
  x = path.interpolate(DATA, NOISE, t)
  np.testing.assert_array_equal(x[0], NOISE[0])
  np.testing.assert_allclose(x[1], (DATA[1] + NOISE[1]) / 2, rtol=1e-6)
  np.testing.assert_array_equal(x[2], DATA[2])
