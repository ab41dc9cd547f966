"""What takes data to noise, what is predicted of it, and the way back.

The objectives that a model can be trained by (`config.loss.objective`): Goku's
rectified flow, and the diffusion it replaced.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp

from goku_jax.flow import diffusion, path, solver
from goku_jax.typing import UserError


@dataclasses.dataclass(frozen=True, eq=False)  # jit knows each by its identity
class Process:
  """Times run from 0, noise, to 1, data; `t` broadcasts against data."""

  snap: Callable  # times -> those at which a model is trained
  mix: Callable  # (data, noise, t) -> the network's input
  target: Callable  # (data, noise, t) -> what it is to predict
  weight: Callable  # t -> of the squared error
  # By name, the default first: (predict(x, t), noise, times, fresh) -> data.
  # `fresh` gives noise by the number of a step.
  solvers: dict[str, Callable]


FLOW = Process(
  snap=lambda t: t,
  mix=path.interpolate,
  target=lambda data, noise, t: path.velocity(data, noise),
  weight=jnp.ones_like,
  solvers={
    "euler": lambda predict, x, times, fresh: solver.euler(predict, x, times),
    "heun": lambda predict, x, times, fresh: solver.heun(predict, x, times),
  },
)


@functools.cache
def make_process(
  *,
  objective: str = "flow",
  schedule: str = "linear",
  prediction: str = "epsilon",
  min_snr: float = 0.0,
) -> Process:
  """The process of an objective, the same one for the same settings.

  Args:
    objective: "flow" or "ddpm", whose settings are the rest.
    schedule: see `diffusion.Diffusion`.
    prediction: the same.
    min_snr: the same.

  Raises:
    UserError: a setting is none of those that there are.
  """
  for name, value, known in (
    ("objective", objective, ("flow", "ddpm")),
    ("schedule", schedule, diffusion.SCHEDULES),
    ("prediction", prediction, diffusion.PREDICTIONS),
  ):
    if value not in known:
      raise UserError(f"loss.{name}={value!r} is not one of {', '.join(known)}")
  if not min_snr >= 0:
    raise UserError(f"loss.min_snr={min_snr}: set 0 or more")
  if objective == "flow":
    return FLOW
  ddpm = diffusion.Diffusion(schedule, prediction, min_snr)
  return Process(
    snap=ddpm.snap,
    mix=ddpm.mix,
    target=ddpm.target,
    weight=ddpm.weight,
    solvers={
      "ddim": lambda predict, x, times, fresh: ddpm.solve(predict, x, times),
      "ancestral": ddpm.solve,
    },
  )
