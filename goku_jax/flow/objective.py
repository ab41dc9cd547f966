"""The loss of the flow, or of diffusion, on a batch of packs (section 2.3).

Letters: B packs, L tokens, P numbers in a token, G segments of a pack.
"""

import functools

import jax
import jax.numpy as jnp

from goku_jax.flow import loss, noise, times
from goku_jax.flow.process import make_process
from goku_jax.typing import UserError


def make_loss(model, *, time: dict, caption_drop_rate: float, **process):
  """`flow_loss` of a model, its settings looked at before any step.

  Args:
    model: a `Goku`.
    time: settings of `times.make_times`.
    caption_drop_rate: part of the samples that are trained without text.
    **process: settings of `make_process`.

  Raises:
    UserError: a setting that no draw can follow.
  """
  if not 0 <= caption_drop_rate <= 1:
    raise UserError(
      f"loss.caption_drop_rate={caption_drop_rate} is not between 0 and 1"
    )
  return functools.partial(
    flow_loss,
    model=model,
    process=make_process(**process),
    time_fn=times.make_times(**time),
    caption_drop_rate=caption_drop_rate,
  )


def draw(batch: dict, rng, *, time_fn, caption_drop_rate: float):
  """Data, noise, time and dropped captions of each sample, by its identity."""
  quantile_BG = batch["quantile_BG"]
  ids = 1 + jnp.arange(quantile_BG.shape[1])
  tokens_BG = (batch["segment_ids_BL"][..., None] == ids).sum(1)
  t_BG = time_fn(quantile_BG, jnp.maximum(tokens_BG, 1))
  dropped_BG = jax.vmap(
    jax.vmap(lambda key: jax.random.bernoulli(key, caption_drop_rate))
  )(_keys(batch, rng, noise.DROP))
  return *draw_ends(batch, rng), t_BG, dropped_BG


def draw_ends(batch: dict, rng):
  """Data and noise of each sample, [B, L, P] both, by its identity."""
  grid = lambda purpose: noise.grid_normal(
    _keys(batch, rng, purpose),
    batch["segment_ids_BL"],
    batch["positions_BL3"],
    batch["tokens_BLP"].shape[-1],
  )
  std_BLP = jnp.exp(0.5 * batch["tokens_logvar_BLP"])
  data_BLP = batch["tokens_BLP"] + std_BLP * grid(noise.POSTERIOR)
  return data_BLP, grid(noise.NOISE)


def _keys(batch, rng, purpose):
  return noise.sample_keys(
    rng, purpose, batch["sample_index_BG"], batch["visit_BG"]
  )


def flow_loss(params, batch: dict, rng, *, model, process, **drawing):
  """Summed squared errors, and sums with counts for the metrics."""
  drawn = draw(batch, rng, **drawing)
  loss_BG = segment_losses(model, process, params, batch, *drawn)
  present_BG = batch["sample_index_BG"] >= 0
  is_video_BG = segment_is_video(batch) & present_BG
  over = lambda mask_BG: (
    jnp.sum(loss_BG * mask_BG),
    jnp.sum(mask_BG.astype(jnp.float32)),
  )
  return loss_BG.sum(), {
    "loss": over(present_BG),
    "loss_image": over(present_BG & ~is_video_BG),
    "loss_video": over(is_video_BG),
  }


def segment_losses(
  model, process, params, batch: dict, data_BLP, noise_BLP, t_BG, dropped_BG
):
  """Weighted mean squared error of each segment, [B, G]; 0 where is none."""
  t_BG = process.snap(t_BG)
  index_BL = jnp.maximum(batch["segment_ids_BL"] - 1, 0)
  t_BL1 = jnp.take_along_axis(t_BG, index_BL, axis=1)[..., None]
  x_BLP = process.mix(data_BLP, noise_BLP, t_BL1)
  predicted_BLP = model.apply(
    {"params": params}, x_BLP, t_BG, batch, dropped_BG
  )
  error_BLP = predicted_BLP - process.target(data_BLP, noise_BLP, t_BL1)
  return process.weight(t_BG) * loss.mean_square_by_segment(
    error_BLP, batch["segment_ids_BL"], t_BG.shape[1]
  )


def segment_is_video(batch: dict):
  """Which segments have more than one latent frame, `[B, G]`."""
  G = batch["sample_index_BG"].shape[1]
  late_BL = batch["positions_BL3"][..., 0] > 0
  here_BLG = batch["segment_ids_BL"][..., None] == 1 + jnp.arange(G)
  return (here_BLG & late_BL[..., None]).any(1)
