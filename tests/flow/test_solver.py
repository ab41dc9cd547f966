"""Orders of convergence on a flow whose solution is known.

For data from a mixture of Gaussians the marginal velocity is a closed form,
and in one dimension the flow carries quantiles: data's distribution at x(1)
equals noise's at x(0).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from goku_jax.flow import path, solver, times

WEIGHT = np.array([0.3, 0.7])
MEAN = np.array([-1.5, 1.0])
STD = np.array([0.6, 0.4])


def mixture_velocity(x, t):
  """E[data - noise | x_t = x], by components of the mixture."""
  x = x[:, None]
  variance = t**2 * STD**2 + (1 - t) ** 2
  share = jax.nn.softmax(
    jnp.log(WEIGHT) + norm.logpdf(x, t * MEAN, jnp.sqrt(variance)), -1
  )
  slope = (t * STD**2 - (1 - t)) / variance
  return jnp.sum(share * (MEAN + slope * (x - t * MEAN)), -1)


def error(solve, num_steps):
  """The largest distance between quantiles of noise and of its image."""
  with jax.enable_x64(True):
    noise = jnp.linspace(-2.5, 2.5, 101)
    x = solve(mixture_velocity, noise, jnp.linspace(0, 1, num_steps + 1))
    reached = jnp.sum(WEIGHT * norm.cdf(x[:, None], MEAN, STD), -1)
    return float(jnp.abs(reached - norm.cdf(noise)).max())


@pytest.mark.parametrize(("name", "ratio"), [("euler", 2), ("heun", 4)])
def test_halving_the_step_divides_the_error_by_the_order(name, ratio):
  solve = getattr(solver, name)
  errors = [error(solve, num_steps) for num_steps in (64, 128, 256)]
  assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)
  assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.05)


def test_heun_reaches_the_mixture():
  assert error(solver.heun, 256) < 1e-4


@pytest.mark.parametrize("solve", [solver.euler, solver.heun])
@pytest.mark.parametrize("num_steps", [1, 7])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_straight_line_is_followed_exactly(solve, num_steps, shift):
  data, noise = jax.random.normal(jax.random.key(0), (2, 4, 3))
  velocity_fn = lambda x, t: path.velocity(data, noise)
  edges = times.spaced(num_steps, shift)
  x = solve(velocity_fn, noise, edges)
  np.testing.assert_allclose(x, data, rtol=1e-5, atol=1e-5)


def test_the_field_is_asked_at_the_start_of_each_step():
  """Euler of dx/dt = t sums the left edges; Heun's trapezoid is exact."""
  edges = jnp.array([0.0, 0.1, 0.4, 1.0])
  field = lambda x, t: jnp.broadcast_to(t, x.shape)
  zero = jnp.zeros(2)
  left = float((np.diff(edges) * edges[:-1]).sum())
  np.testing.assert_allclose(solver.euler(field, zero, edges), left, rtol=1e-6)
  np.testing.assert_allclose(solver.heun(field, zero, edges), 0.5, rtol=1e-6)
