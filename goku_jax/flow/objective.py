"""The flow model's loss on a batch of packs (section 2.3).

Letters: B packs, L tokens, P numbers in a token, G segments of a pack.
"""

import functools

import jax
import jax.numpy as jnp

from goku_jax.flow import loss, noise, path, times
from goku_jax.typing import UserError


def make_loss(
  model, *, time_sampler: str, time_shift: float, caption_drop_rate: float
):
  """`flow_loss` of a model, its settings looked at before any step.

  Raises:
    UserError: a setting that no draw can follow.
  """
  if time_sampler not in times.SAMPLERS:
    known = ", ".join(times.SAMPLERS)
    raise UserError(f"loss.time_sampler={time_sampler!r} is not one of {known}")
  if not time_shift > 0:
    raise UserError(f"loss.time_shift={time_shift}: set a number above 0")
  if not 0 <= caption_drop_rate <= 1:
    raise UserError(
      f"loss.caption_drop_rate={caption_drop_rate} is not between 0 and 1"
    )
  return functools.partial(
    flow_loss,
    model=model,
    time_sampler=time_sampler,
    time_shift=time_shift,
    caption_drop_rate=caption_drop_rate,
  )


def draw(
  batch: dict,
  rng,
  *,
  time_sampler: str,
  time_shift: float,
  caption_drop_rate: float,
):
  """Data, noise, time and dropped captions of each sample, by its identity."""
  keys = lambda purpose: _keys(batch, rng, purpose)
  per_segment = lambda fn, purpose: jax.vmap(jax.vmap(fn))(keys(purpose))
  t_BG = per_segment(times.SAMPLERS[time_sampler], noise.TIME)
  t_BG = times.shifted(t_BG, time_shift)
  dropped_BG = per_segment(
    lambda key: jax.random.bernoulli(key, caption_drop_rate), noise.DROP
  )
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


def flow_loss(params, batch: dict, rng, *, model, **drawing):
  """Summed squared velocity error, and sums with counts for the metrics."""
  loss_BG = segment_losses(model, params, batch, *draw(batch, rng, **drawing))
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
  model, params, batch: dict, data_BLP, noise_BLP, t_BG, dropped_BG
):
  """Mean squared velocity error of each segment, [B, G]; 0 where is none."""
  index_BL = jnp.maximum(batch["segment_ids_BL"] - 1, 0)
  t_BL1 = jnp.take_along_axis(t_BG, index_BL, axis=1)[..., None]
  x_BLP = path.interpolate(data_BLP, noise_BLP, t_BL1)
  predicted_BLP = model.apply(
    {"params": params}, x_BLP, t_BG, batch, dropped_BG
  )
  return loss.mean_square_by_segment(
    predicted_BLP - path.velocity(data_BLP, noise_BLP),
    batch["segment_ids_BL"],
    t_BG.shape[1],
  )


def segment_is_video(batch: dict):
  """Which segments have more than one latent frame, `[B, G]`."""
  G = batch["sample_index_BG"].shape[1]
  late_BL = batch["positions_BL3"][..., 0] > 0
  here_BLG = batch["segment_ids_BL"][..., None] == 1 + jnp.arange(G)
  return (here_BLG & late_BL[..., None]).any(1)
