"""AdamW with a warm-up and a clipped gradient norm."""

import optax

from goku_jax.typing import UserError

SCHEDULES = ("constant", "cosine")


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
  learning_rate: float,
  warmup_steps: int,
  schedule: str,
  total_steps: int,
  b1: float,
  b2: float,
  weight_decay: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """The update rule; the paper gives none, so every value is the config's.

  Raises:
    UserError: a value with which no step learns.
  """
  for name, decay in (("b1", b1), ("b2", b2)):
    if not 0 <= decay < 1:
      raise UserError(f"optim.{name}={decay}: set 0 or more, below 1")
  if not weight_decay >= 0:
    raise UserError(f"optim.weight_decay={weight_decay}: set 0 or more")
  if not clip_norm > 0:
    raise UserError(f"optim.clip_norm={clip_norm}: set a number above 0")
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(
      make_schedule(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule=schedule,
        total_steps=total_steps,
      ),
      b1=b1,
      b2=b2,
      weight_decay=weight_decay,
    ),
  )
