"""The autoencoder's training step, lowered for devices that need not exist."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from goku_jax.data.pipeline import KINDS
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.plan.step import Lowered, place_abstract, whole
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.step import init_state, jit_step
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
  tx = make_optimizer(total_steps=config.total_steps, **config.optim)
  rng = jax.eval_shape(lambda: jax.random.key(config.seed))

  def init(rng):
    video = jnp.zeros((1, *batch["video_BTHWC"].shape[1:]))
    params = trained.model.init(rng, video)["params"]
    critic = trained.critic
    return init_state(params, tx, critic and critic.init_params(rng))

  with meshes.use(mesh):
    state, placed = place_abstract(mesh, init, rng)
    step = jit_step(
      placed,
      loss_fn=trained.loss_fn,
      critic=trained.critic,
      dtype=trained.model.config.dtype,
      tx=tx,
      ema_decay=config.ema_decay,
      micro_batches=config.micro_batches,
    )
    lowered = step.lower(state, batch, whole(mesh, rng))
  return Lowered(lowered, trained.model, mesh, state)


def _abstract_batch(data, mesh):
  """As `pipeline.vae_batches` has it."""
  side, counts = data.videos.crop, (data.num_clips, data.num_images)
  batch = {}
  for kind, count, frames in zip(
    KINDS, counts, (data.videos.num_frames, 1), strict=True
  ):
    shapes = {
      "BTHWC": ((count, frames, side, side, 3), jnp.uint8),
      "index_B": ((count,), jnp.int32),
      "visit_B": ((count,), jnp.int32),
    }
    for name, (shape, dtype) in shapes.items():
      placed = NamedSharding(mesh, rules.batch_spec(f"{kind}_{name}"))
      batch[f"{kind}_{name}"] = jax.ShapeDtypeStruct(
        shape, dtype, sharding=placed
      )
  return batch
