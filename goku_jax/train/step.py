"""One optimisation step, as a pure function of state, batch and key."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """Everything that a resumed run needs; the data position is `step`.

  Fields are `Any`: JAX also fills this tree with shapes and with shardings.
  """

  step: Any  # int32 scalar
  params: Any
  ema: Any  # moving average of params, which sampling uses
  opt_state: Any


def init_state(params, tx) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=jax.tree.map(jnp.copy, params),  # donation needs buffers of its own
    opt_state=tx.init(params),
  )


def ema_decay_at(step, decay: float):
  """The decay after `step` updates: min(decay, (1 + step) / (10 + step)).

  Early averages would otherwise be ruled by the initial parameters.
  """
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def sum_over_micro_batches(loss_fn, params, batch, rng, micro_batches: int):
  """Gradient and metrics of the summed loss, one micro-batch at a time.

  Args:
    loss_fn: `(params, batch, rng) -> (sum over samples, {name: (sum, count)})`.
    params: what to differentiate.
    batch: arrays whose first dim `micro_batches` divides.
    rng: the run's key; draws are by sample, so it is the same for all.
    micro_batches: how many parts the batch is cut into.
  """
  grad_fn = jax.grad(loss_fn, has_aux=True)
  if micro_batches == 1:
    return grad_fn(params, batch, rng)

  # Every micro-batch takes a stripe, so that each device keeps its own rows.
  parts = jax.tree.map(
    lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
  )
  total = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts), rng),
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, grad_fn(params, part, rng)), None

  return jax.lax.scan(add, total, parts)[0]


def train_step(
  state: TrainState,
  batch: dict,
  rng,
  *,
  loss_fn,
  tx: optax.GradientTransformation,
  ema_decay: float,
  micro_batches: int = 1,
):
  """Advances `state` by one batch; returns it and scalar metrics.

  A metric of which the batch holds no sample is not a number.

  Losses are summed over samples and divided once, by the number of samples in
  the whole batch: micro-batches and devices with few long samples then weigh
  no more than those with many short ones.
  """
  grads, sums = sum_over_micro_batches(
    loss_fn, state.params, batch, rng, micro_batches
  )
  count = jnp.maximum(sums["loss"][1], 1)
  grads = jax.tree.map(lambda g: g / count, grads)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  decay = ema_decay_at(state.step, ema_decay)
  metrics = {name: total / n for name, (total, n) in sums.items()}
  metrics["loss"] = sums["loss"][0] / count
  metrics["grad_norm"] = optax.tree.norm(grads)
  state = state.replace(
    step=state.step + 1,
    params=params,
    ema=optax.incremental_update(params, state.ema, 1 - decay),
    opt_state=opt_state,
  )
  return state, metrics
