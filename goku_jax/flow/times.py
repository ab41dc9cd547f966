"""Flow times: drawn for training, spaced for sampling. 0 is noise, 1 data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def uniform(rng: Key[Array, ""]) -> Float[Array, ""]:
  """A time spread evenly over [0, 1]."""
  return jax.random.uniform(rng)


def logit_normal(
  rng: Key[Array, ""], mean: float = 0.0, std: float = 1.0
) -> Float[Array, ""]:
  """The sigmoid of a normal draw: most weight in the middle.

  Stable Diffusion 3, arXiv:2403.03206, section 3.1. A positive mean leans
  towards data, since here t = 1 is data.
  """
  return jax.nn.sigmoid(mean + std * jax.random.normal(rng))


SAMPLERS = {"uniform": uniform, "logit_normal": logit_normal}


def shifted(t: Float[Array, "*n"], shift) -> Float[Array, "*n"]:
  """Times moved towards noise by a shift above 1; 0 and 1 stay.

  The more numbers a sample has, the earlier its layout is decided, and the
  more of the times must lie near noise (arXiv:2403.03206, section 5.3.2).
  """
  return t / (shift + (1 - shift) * t)


def spaced(num_steps: int, shift=1.0) -> Float[Array, " edges"]:
  """`num_steps + 1` rising times from 0 to 1, evenly spaced, then shifted."""
  return shifted(jnp.linspace(0.0, 1.0, num_steps + 1), shift)
