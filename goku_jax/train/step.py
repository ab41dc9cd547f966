"""One optimisation step, as a pure function of state, batch and key."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from goku_jax.models import lora
from goku_jax.parallel import rules
from goku_jax.train import guards, optimizer


@flax.struct.dataclass
class TrainState:
  """Everything that a resumed run needs but its place in the data.

  Fields are `Any`: JAX also fills this tree with shapes and with shardings.
  """

  step: Any  # int32 scalar
  params: Any
  ema: Any  # moving average of params, which sampling uses
  opt_state: Any
  window: Any  # of the last finite steps, see guards.py
  # Parameters and `opt_state` of an opponent, where there is one.
  critic: Any = None
  more_ema: Any = None  # averages with other decays, by `ema_name`
  base: Any = None  # what `params` adapt, where these are adapters


def init_state(
  params, tx, critic_params=None, *, window=128, more_ema=()
) -> TrainState:
  """The state before the first step; of adapters, where `params` has some."""
  adapters, base = lora.split(params)
  params, base = (adapters, base) if adapters else (params, None)
  critic = critic_params and {
    "params": critic_params,
    "opt_state": tx.init(critic_params),
  }
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=jax.tree.map(jnp.copy, params),  # donation needs buffers of its own
    opt_state=tx.init(params),
    window=guards.init_window(window),
    critic=critic,
    more_ema={
      ema_name(decay): jax.tree.map(jnp.copy, params) for decay in more_ema
    }
    or None,
    base=base,
  )


def ema_name(decay: float) -> str:
  """Of the tree of an average that a run keeps beside `ema`."""
  return f"ema_{decay:.9f}".rstrip("0").replace("0.", "")


def ema_decay_at(step, decay: float):
  """The decay after `step` updates: min(decay, (1 + step) / (10 + step)).

  Early averages would otherwise be ruled by the initial parameters.
  """
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def sum_over_micro_batches(grad_fn, batch, micro_batches: int):
  """Gradient and metrics of the summed loss, one micro-batch at a time.

  Args:
    grad_fn: `batch -> (gradient, {name: (sum over samples, count)})`.
    batch: arrays whose first dim `micro_batches` divides.
    micro_batches: how many parts the batch is cut into.
  """
  if micro_batches == 1:
    return grad_fn(batch)

  # Every micro-batch takes a stripe, so that each device keeps its own rows.
  parts = jax.tree.map(
    lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
  )
  total = jax.tree.map(  # in float32 at least
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
    jax.eval_shape(grad_fn, jax.tree.map(lambda x: x[0], parts)),
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, grad_fn(part)), None

  return jax.lax.scan(add, total, parts)[0]


class Critic(NamedTuple):
  """An opponent that is trained beside the model."""

  init_params: Callable  # rng -> its parameters
  # (params, its, batch, rng, step) -> ((gradient, its), sums and counts)
  grad_fn: Callable


def leave_out(grads, frozen: re.Pattern | None):
  """A gradient that is zero, and so never computed, where `frozen` finds it."""
  if frozen is None:
    return grads
  zero = lambda is_frozen, g: jnp.zeros_like(g) if is_frozen else g
  return jax.tree.map(zero, optimizer.find(frozen, grads), grads)


def lay_out(params, dtype):
  """The weights that a step works on, made once, outside of the layers' scan.

  They lie as the scan wants them, and those it runs over have the dtype of
  its products: half of what it would else gather and hold.
  """

  return rules.constrain(cast(params, dtype), weights=True)


def cast(params, dtype):
  """Weights with those of the scan's products in their dtype."""

  def of_products(path, x):
    names = [key.key for key in path]
    is_product = "blocks" in names and names[-1] == "kernel"
    return x.astype(dtype) if is_product else x

  return jax.tree.map_with_path(of_products, params)


def _update(critic, grads, tx):
  updates, opt_state = tx.update(grads, critic["opt_state"], critic["params"])
  params = optax.apply_updates(critic["params"], updates)
  return {"params": params, "opt_state": opt_state}


def jit_step(placed, **settings):
  """`train_step` compiled: (state, batch, rng) -> state, metrics.

  Args:
    placed: shardings of the state, which is donated.
    **settings: keywords of `train_step`.
  """
  return jax.jit(
    functools.partial(train_step, **settings),
    out_shardings=(placed, None),
    donate_argnames="state",
  )


def train_step(
  state: TrainState,
  batch: dict,
  rng,
  *,
  loss_fn,
  tx: optax.GradientTransformation,
  ema_decay: float,
  micro_batches: int = 1,
  critic: Critic | None = None,
  dtype=jnp.float32,
  sigma: float = 0.0,
  clip_sigma: float = 0.0,
  frozen: re.Pattern | None = None,
  more_ema: tuple[float, ...] = (),
):
  """Advances `state` by one batch; returns it and scalar metrics.

  A bad step (see guards.py) advances the count of steps alone.

  Args:
    state: where training stands.
    batch: see `schema.py`.
    rng: the run's key; draws are by sample, so it is the same for all steps.
    loss_fn: `(params, batch, rng) -> (sum over samples, {name: (sum, count)})`.
    tx: the update rule, the critic's too.
    ema_decay: of the average.
    micro_batches: parts of the batch.
    critic: an opponent, whose gradients then stand in place of `loss_fn`'s.
    dtype: of the model's matrix products.
    sigma: above which a loss or gradient is a spike; 0: never.
    clip_sigma: to which a gradient is scaled down, see `guards.clip`; 0: none.
    frozen: finds the paths of parameters that have no gradient.
    more_ema: decays of more averages.

  A metric of which the batch holds no sample is not a number.

  Losses are summed over samples and divided once, by the number of samples in
  the whole batch: micro-batches and devices with few long samples then weigh
  no more than those with many short ones.
  """
  weights = lay_out(state.params, dtype)
  base = state.base and lay_out(state.base, dtype)
  if critic is None:
    whole_loss = lambda weights, *args: loss_fn(lora.join(weights, base), *args)
    grad_fn = lambda part: jax.grad(whole_loss, has_aux=True)(
      weights, part, rng
    )
  else:
    grad_fn = lambda part: critic.grad_fn(
      weights, state.critic["params"], part, rng, state.step
    )
  grads, sums = sum_over_micro_batches(grad_fn, batch, micro_batches)
  count = jnp.maximum(sums["loss"][1], 1)
  grads = jax.tree.map(lambda g: g.astype(jnp.float32) / count, grads)
  if critic is not None:
    grads, critic_grads = grads
  grads = rules.constrain(leave_out(grads, frozen))
  norm = optax.tree.norm(grads)
  if clip_sigma:
    grads = guards.clip(grads, norm, state.window, clip_sigma)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  decay = ema_decay_at(state.step, ema_decay)
  metrics = {name: total / n for name, (total, n) in sums.items()}
  metrics["loss"] = sums["loss"][0] / count
  metrics["grad_norm"] = norm
  is_good, window = guards.judge(state.window, metrics, sigma)
  if critic is not None:
    is_good &= jnp.isfinite(optax.tree.norm(critic_grads))
  metrics["skipped"] = 1 - is_good.astype(jnp.float32)
  new = state.replace(
    params=params,
    ema=optax.incremental_update(params, state.ema, 1 - decay),
    opt_state=opt_state,
    more_ema={
      ema_name(decay): optax.incremental_update(
        params,
        state.more_ema[ema_name(decay)],
        1 - ema_decay_at(state.step, decay),
      )
      for decay in more_ema
    }
    or None,
  )
  if critic is not None:
    new = new.replace(critic=_update(state.critic, critic_grads, tx))
  state = guards.select(is_good, new, state)
  return state.replace(step=state.step + 1, window=window), metrics
