"""Diffusion in discrete steps, which Goku holds its flow against (Table 2).

    x = signal data + sigma noise,      signal^2 = 1 - sigma^2 = alpha-bar

after n of K steps of noise (DDPM, arXiv:2006.11239). Time runs as the flow's,
t = 1 - n / K with data at 1, so that the network is the same.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

STEPS = 1000  # K


def linear() -> np.ndarray:
  """alpha-bar after 0 to K steps; arXiv:2006.11239, section 4."""
  return np.cumprod([1.0, *(1 - np.linspace(1e-4, 0.02, STEPS))])


def cosine() -> np.ndarray:
  """alpha-bar after 0 to K steps; arXiv:2102.09672, eq. 17."""
  n = np.arange(STEPS + 1) / STEPS
  f = np.cos((n + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.cumprod([1.0, *(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))])


SCHEDULES = {"linear": linear, "cosine": cosine}
PREDICTIONS = ("epsilon", "v")


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """DDPM with a schedule, a prediction and weights of the squared error.

  Attributes:
    schedule: a name in SCHEDULES.
    prediction: "epsilon", the noise, or "v" (arXiv:2202.00512).
    min_snr: gamma of the weights of arXiv:2303.09556; 0: all are 1.
  """

  schedule: str
  prediction: str
  min_snr: float = 0.0

  def snap(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The nearest times with noise, of 1 to K steps, towards noise."""
    return 1 - jnp.clip(jnp.ceil((1 - t) * STEPS), 1, STEPS) / STEPS

  def scales(self, t: Float[Array, "..."]):
    """signal and sigma at a time."""
    kept = SCHEDULES[self.schedule]()
    n = jnp.round((1 - t) * STEPS).astype(jnp.int32)
    table = lambda x: jnp.asarray(np.sqrt(x), jnp.float32)[n]
    return table(kept), table(1 - kept)

  def mix(self, data, noise, t):
    """x at time `t`, which broadcasts against `data`."""
    signal, sigma = self.scales(t)
    return signal * data + sigma * noise

  def target(self, data, noise, t):
    """What the network predicts at `t`."""
    if self.prediction == "epsilon":
      return noise
    signal, sigma = self.scales(t)
    return signal * noise - sigma * data

  def ends(self, x, predicted, t):
    """Data and noise of which x would be made, by the prediction."""
    signal, sigma = self.scales(t)
    if self.prediction == "epsilon":
      return (x - sigma * predicted) / signal, predicted
    return signal * x - sigma * predicted, sigma * x + signal * predicted

  def weight(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Of the squared error; arXiv:2303.09556, section 3.4."""
    if not self.min_snr:
      return jnp.ones_like(t)
    signal, sigma = self.scales(t)
    snr = (signal / sigma) ** 2
    of_data = jnp.minimum(snr, self.min_snr)
    return of_data / (snr if self.prediction == "epsilon" else snr + 1)

  def step(self, x, predicted, t, t_next, eta=0.0, fresh=0.0):
    """x at `t_next`, nearer to data; arXiv:2010.02502, eq. 12 and 16.

    With `eta` 0 the noise stays (DDIM); with 1 as much of it is exchanged for
    `fresh` noise as DDPM does.
    """
    data, noise = self.ends(x, predicted, t)
    (signal, sigma), (signal_next, sigma_next) = map(self.scales, (t, t_next))
    new = eta * sigma_next / sigma
    new *= jnp.sqrt(jnp.maximum(1 - (signal / signal_next) ** 2, 0))
    old = jnp.sqrt(jnp.maximum(sigma_next**2 - new**2, 0))
    return signal_next * data + old * noise + new * fresh

  def solve(self, predict, noise, times, fresh=None):
    """Follows `predict` along rising times, one call a step.

    Args:
      predict: (x, t scalar) -> the prediction.
      noise: x at the first time.
      times: from 0 to 1; the steps of noise nearest to them are taken.
      fresh: number of a step -> noise of x's shape, of ancestral sampling;
        None: DDIM.
    """
    times = jnp.round(times * STEPS) / STEPS
    eta = 0.0 if fresh is None else 1.0

    def step(x, edge):
      i, t, t_next = edge
      more = 0.0 if fresh is None else fresh(i)
      return self.step(x, predict(x, t), t, t_next, eta, more), None

    edges = jnp.arange(len(times) - 1), times[:-1], times[1:]
    return jax.lax.scan(step, noise, edges)[0]
