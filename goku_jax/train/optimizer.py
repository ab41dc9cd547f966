"""AdamW or Muon with a warm-up and a clipped gradient norm."""

import jax
import optax
import optax.contrib

from goku_jax import trees
from goku_jax.parallel import rules
from goku_jax.typing import UserError

SCHEDULES = ("constant", "cosine")
RULES = ("adamw", "muon")
MOMENTUM = ("float32", "bfloat16")


def make_schedule(
  *, learning_rate: float, warmup_steps: int, schedule: str, total_steps: int
):
  """Learning rate by step: a linear rise, then `constant` or `cosine` to 0.

  Raises:
    UserError: the schedule is not one of the two, or a number is negative.
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
  return optax.join_schedules([rise, rest], [warmup_steps])


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
) -> optax.GradientTransformation:
  """The update rule; the paper gives none, so every value is the config's.

  `muon` makes the updates of kernels orthogonal, scaled to the size of AdamW's
  so that rates are of one kind (arXiv:2502.16982, eq. 4), and leaves the rest
  to AdamW with Nesterov's momentum: `b1` and `b2` are of its moments alone.

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
  )
  if rule == "muon":
    update = optax.contrib.muon(
      rate,
      weight_decay=weight_decay,
      adam_b1=b1,
      adam_b2=b2,
      adam_weight_decay=weight_decay,
      muon_weight_dimension_numbers=_matrices,
      consistent_rms=0.2,
      mu_dtype=momentum_dtype,
    )
  else:
    update = optax.adamw(
      rate, b1=b1, b2=b2, weight_decay=weight_decay, mu_dtype=momentum_dtype
    )
  return optax.chain(optax.clip_by_global_norm(clip_norm), update)


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
