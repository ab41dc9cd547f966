"""Diffusion: its schedules, its identities, and that it finds the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.flow import diffusion, times
from goku_jax.flow.diffusion import Diffusion

KINDS = [
  Diffusion(schedule, prediction)
  for schedule in diffusion.SCHEDULES
  for prediction in diffusion.PREDICTIONS
]
DATA, NOISE = jax.random.normal(jax.random.key(0), (2, 64, 3))
MEAN, STD = 0.7, 0.3  # of data that are normal


def test_schedules_are_the_published_ones():
  linear = diffusion.linear()
  betas = np.linspace(1e-4, 0.02, 1000)
  np.testing.assert_allclose(linear[1:], np.cumprod(1 - betas))
  np.testing.assert_allclose(linear[-1], 4.0e-5, rtol=0.02)
  f = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
  n = np.arange(990)  # before betas are held below 0.999
  np.testing.assert_allclose(diffusion.cosine()[n], f(n) / f(0), rtol=1e-9)
  for table in (linear, diffusion.cosine()):
    assert table[0] == 1
    assert (np.diff(table) < 0).all()


@pytest.mark.parametrize("ddpm", KINDS)
def test_what_is_predicted_gives_back_the_ends(ddpm):
  t = 1 - jnp.array([1.0, 10, 300, 700])[:, None, None] / 1000
  x = ddpm.mix(DATA, NOISE, t)
  data, noise = ddpm.ends(x, ddpm.target(DATA, NOISE, t), t)
  assert np.abs(data - DATA).max() < 1e-4
  assert np.abs(noise - NOISE).max() < 2e-3


@pytest.mark.parametrize("ddpm", KINDS)
def test_noise_keeps_the_variance(ddpm):
  signal, sigma = ddpm.scales(jnp.linspace(0, 1, 1001))
  np.testing.assert_allclose(signal**2 + sigma**2, 1, rtol=1e-5)


def test_training_times_are_the_thousand_steps():
  t = Diffusion("linear", "v").snap((jnp.arange(100_000) + 0.5) / 100_000)
  steps, counts = np.unique(
    np.round((1 - np.asarray(t)) * 1000).astype(int), return_counts=True
  )
  np.testing.assert_array_equal(steps, np.arange(1, 1001))
  assert np.abs(counts - 100).max() <= 2


def test_weights_hold_the_signal_down():
  """arXiv:2303.09556: min(SNR, 5) times the squared error of the data."""
  t = 1 - jnp.array([1.0, 50, 200, 500, 900]) / 1000
  for prediction in diffusion.PREDICTIONS:
    ddpm = Diffusion("cosine", prediction, min_snr=5.0)
    signal, sigma = ddpm.scales(t)
    x = ddpm.mix(0.3, -0.8, t)
    wrong = jnp.full_like(x, 2.0)  # what a network may say
    error = wrong - ddpm.target(0.3, -0.8, t)
    data, _ = ddpm.ends(x, wrong, t)
    of_data = jnp.minimum((signal / sigma) ** 2, 5) * (data - 0.3) ** 2
    np.testing.assert_allclose(ddpm.weight(t) * error**2, of_data, rtol=2e-2)


def exact(ddpm):
  """The best prediction where data are normal: Bayes' rule."""

  def predict(x, t):
    signal, sigma = ddpm.scales(t)
    gain = signal * STD**2 / (signal**2 * STD**2 + sigma**2)
    data = MEAN + gain * (x - signal * MEAN)
    noise = (x - signal * data) / jnp.maximum(sigma, 1e-12)
    return ddpm.target(data, noise, t)

  return predict


@pytest.mark.parametrize("ddpm", KINDS)
@pytest.mark.parametrize("ancestral", [False, True])
def test_samples_have_the_distribution_of_the_data(ddpm, ancestral):
  key = jax.random.key(1)
  noise = jax.random.normal(key, (20_000,))
  fresh = lambda i: jax.random.normal(jax.random.fold_in(key, i), noise.shape)
  # What DDPM's own spread of a step leaves out is less, the more steps.
  x = ddpm.solve(
    exact(ddpm), noise, times.spaced(1000), fresh if ancestral else None
  )
  assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
  assert float(x.std()) == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("ddpm", KINDS)
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_a_network_that_knows_the_ends_finds_the_data(ddpm, num_steps):
  predict = lambda x, t: ddpm.target(DATA, NOISE, t)
  start = ddpm.mix(DATA, NOISE, jnp.zeros(()))
  x = ddpm.solve(predict, start, times.spaced(num_steps))
  np.testing.assert_allclose(x, DATA, atol=2e-2)


def test_ancestral_steps_are_those_of_ddpm():
  """arXiv:2006.11239, eq. 7: the posterior of one step, its mean and spread."""
  ddpm = Diffusion("linear", "epsilon")
  kept = diffusion.linear()
  for n in (2, 300, 1000):
    t, t_next = 1 - jnp.float32(n) / 1000, 1 - jnp.float32(n - 1) / 1000
    beta = 1 - kept[n] / kept[n - 1]
    x = ddpm.mix(DATA, NOISE, t)
    mean = (
      np.sqrt(kept[n - 1]) * beta * DATA
      + np.sqrt(1 - beta) * (1 - kept[n - 1]) * x
    ) / (1 - kept[n])
    spread = np.sqrt((1 - kept[n - 1]) / (1 - kept[n]) * beta)
    z = jnp.ones_like(x)
    step = ddpm.step(x, NOISE, t, t_next, 1.0, z)
    np.testing.assert_allclose(step, mean + spread * z, rtol=1e-3, atol=2e-3)
