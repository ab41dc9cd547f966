"""Drawn times have their distribution; spaced times their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.flow import times

KEYS = jax.random.split(jax.random.key(0), 20_000)


def test_uniform_times_are_spread_evenly():
  t = np.sort(jax.vmap(times.uniform)(KEYS))
  assert t[0] >= 0
  assert t[-1] < 1
  gap = np.abs(t - (np.arange(len(t)) + 0.5) / len(t)).max()
  assert gap < 1.63 / np.sqrt(len(t))  # Kolmogorov-Smirnov, 1 percent


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.8)])
def test_logit_normal_times_have_a_normal_logit(mean, std):
  t = jax.vmap(lambda key: times.logit_normal(key, mean, std))(KEYS)
  assert ((t > 0) & (t < 1)).all()
  z = np.sort((jax.scipy.special.logit(t) - mean) / std)
  expected = (np.arange(len(z)) + 0.5) / len(z)
  gap = np.abs(jax.scipy.stats.norm.cdf(z) - expected).max()
  assert gap < 1.63 / np.sqrt(len(z))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("num_steps", [1, 25])
def test_spaced_times_rise_from_noise_to_data(num_steps, shift):
  t = np.asarray(times.spaced(num_steps, shift))
  assert t.shape == (num_steps + 1,)
  assert t[0] == 0
  assert t[-1] == 1
  assert (np.diff(t) > 0).all()


def test_the_shift_is_that_of_the_noise_level():
  """Stable Diffusion 3's formula, whose time is the share of noise."""
  level = 1 - jnp.linspace(0, 1, 11)
  shifted = 3 * level / (1 + (3 - 1) * level)
  np.testing.assert_allclose(times.spaced(10, 3.0), 1 - shifted, atol=1e-6)
  even = np.arange(11, dtype=np.float32) / 10
  np.testing.assert_allclose(times.spaced(10), even, atol=1e-6)
