"""The model of a run's workdir, with the parameters of a checkpoint."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import checkpoint, job
from goku_jax import weights as folders
from goku_jax.data import schema
from goku_jax.models import goku, vae
from goku_jax.sample import codec as codecs
from goku_jax.typing import UserError

WEIGHTS = ("ema", "params")


class Restored(NamedTuple):
  """All that sampling needs of a run."""

  config: Any  # of the run
  model: Any
  params: Any
  codec: codecs.Codec
  step: int


def make_model(config, codec: codecs.Codec, **more) -> goku.Goku:
  """The flow model of a run's config on the latents of its codec."""
  sizes = config.model.to_dict() | {"latent_channels": codec.channels}
  return goku.make_goku(**sizes, **more)


def init_params(model, rng, batch):
  """Initial parameters; `batch` gives the shapes."""
  dropped_BG = jnp.zeros(batch["visit_BG"].shape, bool)
  t_BG = jnp.zeros(dropped_BG.shape)
  return model.init(rng, batch["tokens_BLP"], t_BG, batch, dropped_BG)["params"]


def restore(workdir, *, step: int | None = None, weights: str = "ema"):
  """The flow model of a run at a step (the newest whole one by default).

  Raises:
    UserError: no run, a run of another stage, or no whole checkpoint.
  """
  _check_weights(weights)
  config = job.load_config(workdir, "flow")
  codec = codecs.load_codec(workdir)
  model = make_model(config, codec)
  batch = schema.empty_packs(B=1, L=8, P=model.config.patch_width, S=8, G=1)
  init = functools.partial(init_params, model)
  abstract = jax.eval_shape(init, jax.random.key(0), batch)
  step, params = checkpoint.restore_run(workdir, weights, abstract, step)
  return Restored(config, model, jax.device_put(params), codec, step)


class RestoredVAE(NamedTuple):
  """An autoencoder with its parameters."""

  model: vae.VAE
  params: Any
  step: int | None  # None: a folder of weights, which has no steps


def restore_vae(workdir, *, step: int | None = None, weights: str = "ema"):
  """The autoencoder of a run of stage=vae, or of a folder of weights.

  Raises:
    UserError: as `restore`, or the folder is damaged.
  """
  _check_weights(weights)
  if folders.exists(workdir):
    params, config = folders.load(workdir)
    model = vae.make_vae(**config["model"])
    return RestoredVAE(model, params, None)
  sizes = job.load_config(workdir, "vae").model.to_dict()
  model = vae.make_vae(**sizes)
  step, params = checkpoint.restore_run(
    workdir, weights, _abstract_vae(model), step
  )
  return RestoredVAE(model, params, step)


def _abstract_vae(model):
  clip = np.zeros((1, 1, *(4 * s for s in model.config.stride[1:]), 3))
  return jax.eval_shape(model.init, jax.random.key(0), clip)["params"]


def _check_weights(weights):
  if weights not in WEIGHTS:
    raise UserError(f"weights={weights!r} is not one of {', '.join(WEIGHTS)}")
