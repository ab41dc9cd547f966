"""Integrates a velocity field along rising times, from noise to data."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

VelocityFn = Callable  # (x, t scalar) -> dx/dt of x's shape


def euler(
  velocity_fn: VelocityFn,
  noise: Float[Array, "*shape"],
  times: Float[Array, " edges"],
) -> Float[Array, "*shape"]:
  """First order: one call a step."""

  def step(x, interval):
    t, t_next = interval
    return x + (t_next - t) * velocity_fn(x, t), None

  return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def heun(
  velocity_fn: VelocityFn,
  noise: Float[Array, "*shape"],
  times: Float[Array, " edges"],
) -> Float[Array, "*shape"]:
  """Second order: the mean of the slopes at both ends, two calls a step."""

  def step(x, interval):
    t, t_next = interval
    v = velocity_fn(x, t)
    v_next = velocity_fn(x + (t_next - t) * v, t_next)
    return x + (t_next - t) * (v + v_next) / 2, None

  return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]
