"""The model of a run's workdir, with the parameters of a checkpoint."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
  """An autoencoder with its parameters.

  `config` has `model`, and `latent_mean` and `latent_std` where they are known.
  """

  model: vae.VAE
  config: dict
  params: Any
  step: int | None  # None: a folder of weights, which has no steps


def restore_vae(workdir, *, step: int | None = None, weights: str = "ema"):
  """The autoencoder of a run of stage=vae, or of a folder of weights.

  Raises:
    UserError: as `restore`; the folder is damaged, has the weights of something
      else, or a step is asked for.
  """
  _check_weights(weights)
  if folders.exists(workdir):
    if step is not None:
      raise UserError(f"{workdir} has no steps: it is a folder of weights")
    model, config, params = codecs.load_vae(workdir)
    return RestoredVAE(model, config, params, None)
  sizes = job.load_config(workdir, "vae").model.to_dict()
  model = vae.make_vae(**sizes)
  step, params = checkpoint.restore_run(
    workdir, weights, vae.abstract_params(model), step
  )
  return RestoredVAE(model, {"model": sizes}, params, step)


def _check_weights(weights):
  if weights not in WEIGHTS:
    raise UserError(f"weights={weights!r} is not one of {', '.join(WEIGHTS)}")
