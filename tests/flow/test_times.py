"""Times have the density asked for, shifted as its formula says."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from goku_jax.flow import times
from tests import runs

U = (np.arange(200_000) + 0.5).astype(np.float32) / 200_000
PLAIN = runs.LOSS["time"] | dict(shift=1.0)


def draw(u=U, tokens=1.0, **changes):
  return times.make_times(**PLAIN | changes)(jnp.asarray(u), tokens)


def uniform_density(t):
  return np.ones_like(t)


def logit_normal_density(t, mean, std):
  """arXiv:2403.03206, eq. 19."""
  z = (np.log(t / (1 - t)) - mean) / std
  return norm.pdf(z) / (std * t * (1 - t))


def mode_density(t, scale):
  """du/dt, by inverting t(u) on a fine grid in float64."""
  u = np.linspace(0, 1, 1_000_001)
  of_u = u + scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
  slope = 1 + scale * (1 - np.pi / 2 * np.sin(np.pi * u))
  return 1 / np.interp(t, of_u, slope)


@pytest.mark.parametrize(
  ("settings", "density"),
  [
    (dict(weights={"uniform": 1.0}), uniform_density),
    (dict(), lambda t: logit_normal_density(t, 0.0, 1.0)),
    (
      dict(mean=-0.5, std=0.6),
      lambda t: logit_normal_density(t, -0.5, 0.6),
    ),
    (dict(weights={"mode": 2.0}), lambda t: mode_density(t, 1.29)),
    (
      dict(weights={"mode": 1.0}, scale=-0.7),
      lambda t: mode_density(t, -0.7),
    ),
    (
      dict(weights={"uniform": 1.0, "logit_normal": 0.0, "mode": 3.0}),
      lambda t: 0.25 + 0.75 * mode_density(t, 1.29),
    ),
    (
      dict(weights={"uniform": 1.0, "logit_normal": 1.0}, std=0.5),
      lambda t: 0.5 + 0.5 * logit_normal_density(t, 0.0, 0.5),
    ),
    (  # dt0/dt of t = t0 / (3 - 2 t0)
      dict(weights={"uniform": 1.0}, shift=3.0),
      lambda t: 3 / (1 + 2 * t) ** 2,
    ),
  ],
)
def test_the_histogram_is_that_of_the_density(settings, density):
  counts, _ = np.histogram(draw(**settings), 50, (0, 1))
  fine = (np.arange(50 * 200) + 0.5) / (50 * 200)
  want = density(fine).reshape(50, 200).mean(1)
  np.testing.assert_allclose(counts / len(U) * 50, want, rtol=0.02, atol=0.01)


def test_times_lie_between_noise_and_data():
  ends = np.array([0.0, 1 - 2.0**-24], np.float32)
  weights = dict(uniform=1.0, logit_normal=1.0, mode=1.0)
  for name in weights:
    t = np.asarray(draw(ends, weights={name: 1.0}))
    assert (t >= 0).all()
    assert (t <= 1).all()
  assert np.isfinite(draw(weights=weights)).all()


def test_larger_samples_see_more_noise():
  tokens = np.array([64.0, 256.0, 1024.0], np.float32)
  t = draw(np.full(3, 0.5, np.float32), tokens, shift=2.0, shift_tokens=256)
  want = times.shifted(jnp.full(3, 0.5), np.array([1, 2, 4]))
  np.testing.assert_allclose(t, want, rtol=1e-6)


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


def test_the_root_of_the_tokens_keeps_the_noise_of_a_mean():
  """Of n equal numbers under noise the mean is known to (1 - t) / (t sqrt n).

  A time t0 for n0 tokens and its shift for n give it the same error.
  """
  n0, n, t0 = 100.0, 2500.0, 0.4
  t = float(times.shifted(jnp.array(t0), times.shift_of(1.0, 100, n)))
  np.testing.assert_allclose(
    (1 - t) / (t * np.sqrt(n)), (1 - t0) / (t0 * np.sqrt(n0)), rtol=1e-5
  )
