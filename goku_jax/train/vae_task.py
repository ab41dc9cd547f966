"""The autoencoder: clips and single images together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.data import digits, pipeline, videos
from goku_jax.models import vae
from goku_jax.parallel.batch import check_rows
from goku_jax.sample.codec import to_uint8
from goku_jax.train.task import Task
from goku_jax.train.vae_loss import KINDS, vae_loss
from goku_jax.typing import UserError


def make_task(config, mesh) -> Task:
  """The autoencoder of a config."""
  counts = {name: config.data[name] for name in ("num_clips", "num_images")}
  check_rows(mesh, config.micro_batches, **counts)
  model = vae.make_vae(**config.model)
  raw, held_out = _sources(config)
  batches = functools.partial(
    pipeline.vae_batches,
    raw,
    **counts,
    seed=config.seed,
  )
  shown = np.stack([held_out[i]["video"] for i in (1, 3, 5, 7)])
  return Task(
    init_params=lambda rng, batch: model.init(
      rng, jnp.zeros(batch["video_BTHWC"].shape)
    )["params"],
    loss_fn=functools.partial(vae_loss, model=model, **config.loss),
    batches=lambda first_step: batches(
      first_step=first_step,
      num_steps=config.total_steps - first_step,
      host_index=jax.process_index(),
      host_count=jax.process_count(),
    ),
    work=functools.partial(_work, model),
    show=functools.partial(_show, model, shown),
    captions=[f"clip {i}" for i in range(len(shown))],
    picture=lambda batch: [v for k in KINDS for v in batch[f"{k}_BTHWC"]][:16],
    settle=lambda workdir: None,
  )


def _sources(config):
  """What is trained on, and what is shown: films held out, if any are."""
  data = config.data
  if "videos" not in data:
    raw = digits.Digits(seed=config.seed, **data.digits)
    return raw, raw
  if not data.path:
    raise UserError("set --config.data.path to a folder of videos")
  make = functools.partial(
    videos.Videos, data.path, seed=config.seed, **data.videos
  )
  raw = make()
  return raw, make("held_out") if data.videos.held_out else raw


def _work(model, batch) -> tuple[float, int]:
  """Training FLOPs of a batch, and its latent positions."""
  shapes = [batch[f"{kind}_BTHWC"].shape for kind in KINDS]
  positions = sum(int(np.prod(model.latent_shape(s)[:-1])) for s in shapes)
  return 3.0 * positions * model.config.flops_per_position, positions


def _show(model, shown, params, ema):
  """The same clips through raw and averaged parameters."""
  video = jax.device_put(shown.astype(np.float32) / 127.5 - 1)
  through = lambda tree: list(
    to_uint8(jax.device_get(_reconstruct(model, tree, video)))
  )
  return {"real": list(shown), "raw": through(params), "ema": through(ema)}


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(model, params, video_BTHWC):
  return model.apply({"params": params}, video_BTHWC)[0]
