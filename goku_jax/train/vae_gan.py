"""The autoencoder against a discriminator, after a start step.

Hinge losses, with the adaptive weight of VQGAN (arXiv:2012.09841, section 3.2):
at the decoder's last layer the gradient of the opponent is as long as that of
the reconstruction, times a weight.

Letters: B clips or images, T H W frames, height, width, C channels.
"""

import jax
import jax.numpy as jnp
import optax

from goku_jax.data.pipeline import KINDS
from goku_jax.train.vae_loss import pixels

MAX_SCALE = 1e4


def gan_grads(
  params,
  critic_params,
  batch: dict,
  rng,
  step,
  *,
  reconstruct_fn,
  loss_fn,
  critic_fn,
  weight: float,
  start_step: int,
  r1_weight: float = 0.0,
):
  """Gradients of both players, and sums with counts for the metrics.

  Args:
    params: of the autoencoder.
    critic_params: of the discriminator.
    batch: as `pipeline.vae_batches` makes it.
    rng: the run's key.
    step: before `start_step` neither player feels the other.
    reconstruct_fn: `(params, batch, rng)` -> `vae_loss.reconstruct`.
    loss_fn: `(outs, batch, rng)` -> `vae_loss.reconstruction_loss`.
    critic_fn: `(critic_params, video)` -> scores [B, ...].
    weight: of the discriminator, relative to the reconstruction.
    start_step: see `step`.
    r1_weight: of the squared gradient at real clips (arXiv:1801.04406).
  """
  outs, pull = jax.vjp(lambda p: reconstruct_fn(p, batch, rng), params)
  of_loss, sums = jax.grad(loss_fn, has_aux=True)(outs, batch, rng)
  decoded = {kind: out[0] for kind, out in outs.items()}
  real = {kind: pixels(batch, kind) for kind in KINDS}

  generator, of_generator = jax.value_and_grad(
    lambda made: _generator_loss(critic_params, made, critic_fn)
  )(decoded)
  critic, critic_grads = jax.value_and_grad(
    lambda p: _critic_loss(p, real, decoded, critic_fn, r1_weight)
  )(critic_params)
  # Not by lax.cond, in which XLA's convolutions are much slower on a CPU; the
  # steps before the start are few.
  is_on = step >= start_step
  switch = lambda tree: jax.tree.map(lambda x: jnp.where(is_on, x, 0), tree)
  of_generator, critic_grads = switch((of_generator, critic_grads))

  still = jax.tree.map(jnp.zeros_like, outs)
  of_generator = {
    kind: (of_generator[kind], *still[kind][1:]) for kind in KINDS
  }
  # Of each backward pass all but the last layer is dead code.
  length = lambda grads: optax.tree.norm(_last_layer(pull(grads)[0]))
  scale = length(of_loss) / jnp.maximum(length(of_generator), 1e-12)
  scale = weight * jnp.clip(scale, 0.0, MAX_SCALE)
  (grads,) = pull(
    jax.tree.map(lambda a, b: a + scale * b, of_loss, of_generator)
  )
  count = sums["loss"][1] * is_on  # without a game, not a number
  sums = sums | {
    "gan_generator": (generator * is_on, count),
    "gan_critic": (critic * is_on, count),
    "gan_weight": (scale * count, count),
  }
  return (grads, critic_grads), sums


def _last_layer(params):
  """The decoder's kernel at the pixels."""
  (name,) = params["decoder"].keys() & {"conv_out", "patch_out"}
  return params["decoder"][name]["kernel"]


def _generator_loss(critic_params, decoded, critic_fn):
  scores = [_mean(critic_fn(critic_params, x)) for x in decoded.values()]
  return -sum(score_B.sum() for score_B in scores)


def _critic_loss(critic_params, real, decoded, critic_fn, r1_weight):
  total = 0.0
  for kind, video in real.items():
    score_fn = lambda x: critic_fn(critic_params, x)
    loss_B = _mean(jax.nn.relu(1 - score_fn(video)))
    loss_B += _mean(jax.nn.relu(1 + score_fn(decoded[kind])))
    total += 0.5 * loss_B.sum()
    if r1_weight:
      slope = jax.grad(lambda x, f=score_fn: _mean(f(x)).sum())(video)
      total += 0.5 * r1_weight * jnp.square(slope).sum()
  return total


def _mean(x_BTHW):
  return x_BTHW.mean(tuple(range(1, x_BTHW.ndim)))
