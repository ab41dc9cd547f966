"""Flow times: drawn for training, spaced for sampling. 0 is noise, 1 data.

A density is given by its quantile function, from numbers u in [0, 1) to times;
the data brings each sample's u, stratified over the whole step
(data/pipeline.py).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.typing import UserError

# Scales of `mode` beyond which its quantile function would turn back.
SCALES = (-1.0, 2 / (math.pi - 2))


def uniform(u: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """Times spread evenly over [0, 1]."""
  return u


def logit_normal(
  u: Float[Array, "*n"], mean: float = 0.0, std: float = 1.0
) -> Float[Array, "*n"]:
  """The sigmoid of normal numbers: most weight in the middle, none at the ends.

  Stable Diffusion 3, arXiv:2403.03206, section 3.1. A positive mean leans
  towards data, since here t = 1 is data.
  """
  return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u))


def mode(u: Float[Array, "*n"], scale: float = 1.29) -> Float[Array, "*n"]:
  """Most weight in the middle, where `scale` is positive, and some at the ends.

  Stable Diffusion 3, arXiv:2403.03206, eq. 20; 1.29 is what Waver takes for
  video (arXiv:2508.15761).
  """
  return u + scale * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1 + u)


def make_times(
  *,
  weights: dict[str, float],
  mean: float,
  std: float,
  scale: float,
  shift: float,
  shift_tokens: int,
):
  """Times of samples by their u and their tokens, `[*n]` both.

  Args:
    weights: of the densities above, by name, in a mixture.
    mean: of `logit_normal`.
    std: of `logit_normal`, above 0.
    scale: of `mode`, -1 to 1.75.
    shift: as `shifted` takes it.
    shift_tokens: see `shift_of`.

  Raises:
    UserError: a setting that no draw can follow.
  """
  densities = {
    "uniform": uniform,
    "logit_normal": functools.partial(logit_normal, mean=mean, std=std),
    "mode": functools.partial(mode, scale=scale),
  }
  for name, weight in weights.items():
    if name not in densities:
      known = ", ".join(densities)
      raise UserError(f"loss.time.weights.{name}: there are {known}")
    if not 0 <= weight < math.inf:
      raise UserError(f"loss.time.weights.{name}={weight}: set 0 or more")
  total = sum(weights.values())
  if not total:
    raise UserError("loss.time.weights are all 0: set one above 0")
  if not 0 < std < math.inf:
    raise UserError(f"loss.time.std={std}: set a number above 0")
  if not SCALES[0] <= scale <= SCALES[1]:
    low, high = SCALES
    raise UserError(f"loss.time.scale={scale}: set {low} to {high:.2f}")
  check_shift(shift, shift_tokens, "loss.time.")
  parts = [(w / total, densities[name]) for name, w in weights.items() if w]

  def draw(u, tokens):
    t, start = jnp.zeros_like(u), 0.0
    for weight, quantile in parts:  # each has a part of [0, 1) to itself
      inside = jnp.clip((u - start) / weight, 0.0, 1.0)
      t = jnp.where(u >= start, quantile(inside), t)
      start += weight
    return shifted(t, shift_of(shift, shift_tokens, tokens))

  return draw


def check_shift(shift: float, shift_tokens: int, where: str = ""):
  """Refuses what no time can be shifted by."""
  if not 0 < shift < math.inf:
    raise UserError(f"{where}shift={shift}: set a number above 0")
  if shift_tokens < 0:
    raise UserError(f"{where}shift_tokens={shift_tokens}: set 0 or more")


def shift_of(shift, shift_tokens, tokens):
  """The shift of a sample of so many tokens.

  `shift` is that of one with `shift_tokens`, and the square root of the count
  carries it over to others (arXiv:2403.03206, eq. 23): it is as hard to see a
  layout through the noise then. With 0 all samples have the same.
  """
  return shift * jnp.sqrt(tokens / shift_tokens) if shift_tokens else shift


def shifted(t: Float[Array, "*n"], shift) -> Float[Array, "*n"]:
  """Times moved towards noise by a shift above 1; 0 and 1 stay.

  The more numbers a sample has, the earlier its layout is decided, and the
  more of the times must lie near noise (arXiv:2403.03206, section 5.3.2).
  """
  return t / (shift + (1 - shift) * t)


def spaced(num_steps: int, shift=1.0) -> Float[Array, " edges"]:
  """`num_steps + 1` rising times from 0 to 1, evenly spaced, then shifted."""
  return shifted(jnp.linspace(0.0, 1.0, num_steps + 1), shift)
