"""What the loop must know of a model: its loss, its data, its pictures."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from goku_jax.train.step import Critic


class Task(NamedTuple):
  """One of the two models and all that training it takes."""

  init_params: Callable[[Any], dict]  # rng -> params
  loss_fn: Callable  # see step.train_step
  # (first step, num_steps=that of the run) -> batches of this host
  batches: Callable[..., Iterator[dict]]
  work: Callable[[dict], tuple[float, int]]  # batch -> training FLOPs, tokens
  # (params, ema) -> videos uint8 [T, H, W, 3] by the name of what made them
  show: Callable[[dict, dict], dict[str, list[np.ndarray]]]
  captions: list[str]  # of the videos that each of them shows
  # host's batch -> the videos in it, decoded back
  picture: Callable[[dict], list[np.ndarray]]
  # workdir -> None; leaves there what samplers need beside the checkpoints, and
  # refuses to go on with other data
  settle: Callable[[Any], None]
  dtype: Any  # of the model's matrix products
  critic: Critic | None = None  # an opponent
  # first step -> None; prints what there is and how long it will take
  preflight: Callable[[int], None] = lambda first_step: None
  # (suites, step, params, ema, workdir) -> None; runs evaluators, on every host
  evaluate: Callable | None = None
  close: Callable[[], None] = lambda: None  # ends what reads the data
