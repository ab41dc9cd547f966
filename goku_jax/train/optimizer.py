"""AdamW or Muon with a warm-up and a clipped gradient norm."""

import functools
import re

import jax
import optax
import optax.contrib

from goku_jax import trees
from goku_jax.parallel import rules
from goku_jax.typing import UserError

SCHEDULES = ("constant", "cosine", "wsd")
RULES = ("adamw", "muon")
MOMENTUM = ("float32", "bfloat16")


def make_schedule(
  *,
  learning_rate: float,
  warmup_steps: int,
  schedule: str,
  total_steps: int,
  decay_steps: int = 0,
):
  """Learning rate by step: a linear rise, then what `schedule` says.

  Args:
    learning_rate: after the rise.
    warmup_steps: of the rise.
    schedule: `constant`, `cosine` to 0, or `wsd` (warm-up, stable, decay): a
      line to 0 at the end.
    total_steps: of the run.
    decay_steps: the last ones, of `wsd`.

  Raises:
    UserError: the schedule is none of these, or a number cannot be.
  """
  if schedule not in SCHEDULES:
    known = ", ".join(SCHEDULES)
    raise UserError(f"optim.schedule={schedule!r} is not one of {known}")
  if not learning_rate >= 0:  # nor is nan
    raise UserError(f"optim.learning_rate={learning_rate}: set 0 or more")
  if warmup_steps < 0:
    raise UserError(f"optim.warmup_steps={warmup_steps}: set 0 or more")
  rise = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
  rest = optax.constant_schedule(learning_rate)
  if schedule == "cosine":
    rest = optax.cosine_decay_schedule(
      learning_rate, max(total_steps - warmup_steps, 1)
    )
  if schedule != "wsd":
    return optax.join_schedules([rise, rest], [warmup_steps])
  if not 0 < decay_steps <= total_steps - warmup_steps:
    raise UserError(
      f"optim.decay_steps={decay_steps}: of schedule=wsd set 1 to total_steps"
      f" - warmup_steps={total_steps - warmup_steps}"
    )
  fall = optax.linear_schedule(learning_rate, 0.0, decay_steps)
  edges = [warmup_steps, total_steps - decay_steps]
  return optax.join_schedules([rise, rest, fall], edges)


def make_optimizer(
  *,
  rule: str = "adamw",
  learning_rate: float,
  warmup_steps: int,
  schedule: str,
  total_steps: int,
  b1: float,
  b2: float,
  weight_decay: float,
  clip_norm: float,
  momentum_dtype: str = "float32",
  decay_steps: int = 0,
  decayed: str = "kernel$",
  frozen: str | None = None,
) -> optax.GradientTransformation:
  """The update rule; the paper gives none, so every value is the config's.

  `muon` makes the updates of kernels orthogonal, scaled to the size of AdamW's
  so that rates are of one kind (arXiv:2502.16982, eq. 4), and leaves the rest
  to AdamW with Nesterov's momentum: `b1` and `b2` are of its moments alone.

  `weight_decay` is of parameters whose path `decayed` finds, a regular
  expression: of kernels, and of neither biases nor norms. Those that `frozen`
  finds stay as they are, and have no moments.

  Of the moments the first may be held as `momentum_dtype`. The second stays
  float32: what a step adds to it is less than bfloat16 can tell.

  Raises:
    UserError: an unknown rule, or a value with which no step learns.
  """
  if rule not in RULES:
    raise UserError(f"optim.rule={rule!r} is not one of {', '.join(RULES)}")
  for name, decay in (("b1", b1), ("b2", b2)):
    if not 0 <= decay < 1:
      raise UserError(f"optim.{name}={decay}: set 0 or more, below 1")
  if not weight_decay >= 0:
    raise UserError(f"optim.weight_decay={weight_decay}: set 0 or more")
  if momentum_dtype not in MOMENTUM:
    known = " or ".join(MOMENTUM)
    raise UserError(f"optim.momentum_dtype={momentum_dtype!r}: set {known}")
  if not clip_norm > 0:
    raise UserError(f"optim.clip_norm={clip_norm}: set a number above 0")
  rate = make_schedule(
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    schedule=schedule,
    total_steps=total_steps,
    decay_steps=decay_steps,
  )
  if rule == "muon":
    update = optax.contrib.muon(
      rate,
      adam_b1=b1,
      adam_b2=b2,
      muon_weight_dimension_numbers=_matrices,
      consistent_rms=0.2,
      mu_dtype=momentum_dtype,
    )
  else:
    update = optax.adam(rate, b1=b1, b2=b2, mu_dtype=momentum_dtype)
  if weight_decay:  # beside the update, as AdamW's, of either rule
    mask = functools.partial(find, read_pattern("optim.decayed", decayed))
    pull = optax.add_decayed_weights(lambda n: -weight_decay * rate(n), mask)
    update = optax.chain(update, pull)
  update = optax.chain(optax.clip_by_global_norm(clip_norm), update)
  if frozen is None:
    return update
  return optax.partition(
    {False: update, True: optax.set_to_zero()},
    functools.partial(find, read_pattern("optim.frozen", frozen)),
  )


def read_pattern(name: str, pattern: str) -> re.Pattern:
  """A regular expression of a config.

  Raises:
    UserError: it is none.
  """
  try:
    return re.compile(pattern)
  except re.error as error:
    raise UserError(f"{name}={pattern!r} is no pattern: {error}") from error


def find(pattern: re.Pattern, params):
  """Which parameters have a path that the pattern finds, as a tree."""
  return jax.tree.map_with_path(
    lambda path, _: bool(pattern.search(trees.path_of(path))), params
  )


def _matrices(params):
  """Kernels as matrices from all that they read to all that they make.

  Layers of a scan, which share an array, are matrices of their own.
  """

  def dims(path, x):
    path = trees.path_of(path)
    if not path.endswith("kernel"):
      return None
    reads = tuple(range(rules.is_scanned(path), x.ndim - 1))
    return optax.contrib.MuonDimensionNumbers(reads, x.ndim - 1)

  return jax.tree.map_with_path(dims, params)
