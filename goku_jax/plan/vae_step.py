"""The autoencoder's training step, lowered for devices that need not exist."""

import jax.numpy as jnp

from goku_jax.data import schema
from goku_jax.data.pipeline import KINDS
from goku_jax.parallel import mesh as meshes
from goku_jax.plan.step import Lowered, abstract_arrays, lower_training
from goku_jax.train.vae_task import make_trained
from goku_jax.typing import UserError


def lower_vae(config, devices) -> Lowered:
  """The step that `train` would run on these devices.

  Args:
    config: of stage=vae, of videos whose crop and length it says.
    devices: real ones, or of a topology.

  Raises:
    UserError: as `train` would, or no size of clips is said.
  """
  if "videos" not in config.data:
    raise UserError("--job=vae needs data.videos, as configs/vae.py has it")
  mesh = meshes.make_mesh(**config.mesh, devices=devices)
  trained = make_trained(config, mesh)
  batch = _abstract_batch(config.data, mesh)
  model = trained.model

  def init_params(rng):
    video = jnp.zeros((1, *batch["video_BTHWC"].shape[1:]))
    return model.init(rng, video)["params"]

  return lower_training(
    config,
    mesh,
    model,
    batch,
    init_params=init_params,
    loss_fn=trained.loss_fn,
    critic=trained.critic,
    dtype=model.config.dtype,
  )


def _abstract_batch(data, mesh):
  """As `pipeline.vae_batches` has it."""
  side, batch = data.videos.crop, {}
  counts = ((data.num_clips, data.videos.num_frames), (data.num_images, 1))
  for kind, (count, frames) in zip(KINDS, counts, strict=True):
    dtypes = {k: v for k, v in schema.VAE.items() if k.startswith(kind)}
    sizes = dict(B=count, T=frames, H=side, W=side, C=3)
    batch |= abstract_arrays(dtypes, sizes, mesh)
  return batch
