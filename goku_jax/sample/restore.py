"""The model of a run's workdir, with the parameters of a checkpoint."""

import functools
import json
import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from goku_jax import checkpoint, files, job
from goku_jax import weights as folders
from goku_jax.data import schema
from goku_jax.flow.process import Process, make_process
from goku_jax.models import goku, kernels, lora, vae
from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.parallel.attention import shard_attention, shard_text_attention
from goku_jax.sample import codec as codecs
from goku_jax.sample import text as texts
from goku_jax.typing import UserError

WEIGHTS = ("ema", "params")
LATENTS = "latents.json"  # in the workdir: what tells its latents from others
BASE = "base.json"  # there: which weights the adapters stand on


class Restored(NamedTuple):
  """All that sampling needs of a run."""

  config: Any  # of the run
  model: Any
  params: Any
  codec: codecs.Codec
  step: int
  text: texts.TextEncoder | None = None  # where the model reads embeddings
  ranks: int = 1  # that share the packs which are drawn at once
  weights: str | None = None  # the kind that `params` are, one of WEIGHTS
  digest: str | None = None  # of the checkpoint; None: still in training


def reads_embeddings(config) -> bool:
  """Whether a flow model takes captions as embeddings of a frozen encoder."""
  return "text" in config and "text" not in config.model


def load_text(text) -> texts.TextEncoder:
  """The text encoder of a config's section `text`.

  Raises:
    UserError: it names none.
  """
  if not text.path:
    raise UserError(
      "this model reads embeddings of text: set --config.text.path to its"
      " encoder's folder, in sample --text_encoder"
    )
  return texts.load(
    text.path,
    dtype=text.dtype,
    max_text=text.max_text,
    mesh=meshes.make_local_mesh(),
  )


def make_model(config, codec: codecs.Codec, **more) -> goku.Goku:
  """The flow model of a run's config on the latents of its codec."""
  sizes = config.model.to_dict() | {"latent_channels": codec.channels}
  return goku.make_goku(**sizes, **more)


def process_of(config) -> Process:
  """What the flow model of a run's config was trained to undo."""
  given = config.loss.to_dict()
  settings = ("objective", "schedule", "prediction", "min_snr")
  return make_process(**{k: given[k] for k in settings if k in given})


def mesh_fns(config, mesh) -> dict:
  """What the model does differently on a mesh, as `make_goku` takes it.

  Raises:
    UserError: the mesh cannot be split so, or has no such kernel.
  """
  settings = config.attention.to_dict()
  ring = settings.pop("ring")
  platform = mesh.devices.flat[0].platform
  choose = functools.partial(kernels.choose, **settings, platform=platform)
  segments = config.data.pack.segments
  kernel = choose(segments=segments)
  text_kernel = choose(segments=segments + 1)  # the empty caption comes first
  if ring > 1 and platform == "gpu" and settings["kernel"] in ("auto", "cudnn"):
    raise UserError(
      f"attention.ring={ring}: cuDNN gives no log-sum-exp by which a ring joins"
      " its parts: set attention.ring=1, or attention.kernel=chunked"
    )
  return {
    "attention_fn": shard_attention(kernel, mesh, ring=ring),
    "text_attention_fn": shard_text_attention(text_kernel, mesh),
    "weights_fn": rules.scatter_gradients if mesh.size > 1 else None,
  }


def init_params(model, rng):
  """Initial parameters, which depend on no size of a pack."""
  cfg = model.config
  sizes = dict(P=cfg.patch_width, E=cfg.text_width, K=cfg.condition_width)
  packs = schema.empty_packs(B=1, L=8, S=8, G=1, **sizes)
  batch = jax.tree.map(jnp.asarray, packs)
  dropped_BG = jnp.zeros(batch["visit_BG"].shape, bool)
  t_BG = jnp.zeros(dropped_BG.shape)
  args = batch["tokens_BLP"], t_BG, batch, dropped_BG
  params = model.init(rng, *args)["params"]
  if model.lora and not lora.split(params)[0]:
    raise UserError(
      f"model.lora.targets={model.lora['targets']!r} finds no dense layer: set"
      " a pattern of paths like transformer/blocks/self_attn/q"
    )
  return params


class Start(NamedTuple):
  """A run to begin from, whose newest whole checkpoint is step None."""

  workdir: str
  step: int | None


def read_start(config) -> Start | None:
  """What `config.init_from` names, if anything.

  Raises:
    UserError: there is no such run, it is of another stage, or has adapters.
  """
  text = config.get("init_from")
  if not text:
    return None
  workdir, _, step = text.rpartition(":")
  found = Start(workdir, int(step)) if step.isdecimal() else Start(text, None)
  try:
    theirs = job.load_config(found.workdir, config.stage)
  except UserError as error:
    raise UserError(f"config.init_from={text}: {error}") from error
  if theirs.model.get("lora"):
    raise UserError(
      f"config.init_from={text} has adapters alone: merge them first, with"
      " convert --format=lora"
    )
  return found


def restore_base(config, abstract, workdir):
  """The weights that a run's adapters stand on, those of `config.init_from`.

  Raises:
    UserError: it names no step, one of another model, or not the one that the
      run in `workdir` began at.
  """
  start, kind = _read_base(config), config.init_weights
  _, params, digest = checkpoint.restore_run(
    start.workdir, kind, abstract, start.step
  )
  kept = pathlib.Path(workdir) / BASE
  if kept.exists() and json.loads(kept.read_text()) != [kind, digest]:
    raise UserError(
      f"config.init_from={config.init_from} ({kind}) is not what the adapters"
      f" in {workdir} were trained on: name that"
    )
  return params


def keep_base(config, workdir):
  """Writes down what a run's adapters stand on, for `restore_base`."""
  kept, start = pathlib.Path(workdir) / BASE, _read_base(config)
  if not kept.exists():
    digest = checkpoint.digest_of(start.workdir, start.step)
    files.write_json(kept, [config.init_weights, digest])


def _read_base(config) -> Start:
  start = read_start(config)
  if start is None or start.step is None:
    raise UserError(
      "model.lora adapts the weights of one step of a run: set"
      " config.init_from=DIR:STEP"
    )
  return start


def restore(
  workdir,
  *,
  step: int | None = None,
  weights: str = "ema",
  text_encoder: str | None = None,
  mesh=None,
):
  """The flow model of a run at a step (the newest whole one by default).

  Args:
    workdir: of the run.
    step: of its checkpoints.
    weights: "ema" or "params".
    text_encoder: where the run's frozen text encoder is now.
    mesh: of the devices that share the parameters and what is drawn, any number
      of them; one device by default.

  Raises:
    UserError: no run, a run of another stage, no whole checkpoint, or another
      text encoder than it was trained with.
  """
  _check_weights(weights)
  config = job.load_config(workdir, "flow")
  text = None
  if reads_embeddings(config):
    config.text.path = text_encoder or config.text.path
    text = load_text(config.text)
    trained = json.loads((pathlib.Path(workdir) / LATENTS).read_text())["text"]
    if text.digest != trained:
      raise UserError(
        f"{config.text.path} is not the text encoder that {workdir} was trained"
        " with: give --text_encoder"
      )
  elif text_encoder:
    raise UserError("this model has a text encoder of its own: leave that out")
  codec = codecs.load_codec(workdir)
  found = restore_params(
    workdir, config, codec, step=step, weights=weights, mesh=mesh
  )._replace(text=text)
  if mesh is None:
    return found._replace(params=jax.device_put(found.params))
  config = found.config
  if "attention" in config:  # older runs leave it to the partitioner
    config.attention.ring = 1  # of the mesh that it was trained on
    model = make_model(config, codec, **mesh_fns(config, mesh))
    found = found._replace(model=model)
  return found._replace(ranks=batches.count_ranks(mesh))


def restore_params(workdir, config, codec, *, step, weights, mesh=None):
  """`Restored` of a run's config and codec, without its text encoder.

  Adapters are merged with what they stand on, and gone from its config.

  Raises:
    UserError: no whole checkpoint, or none of what adapters stand on.
  """
  model = make_model(config, codec)
  init, rng = functools.partial(init_params, model), jax.random.key(0)
  if mesh is None:
    abstract = jax.eval_shape(init, rng)
  else:
    abstract, _ = rules.lay_out(mesh, init, rng)
  adapters, base = lora.split(abstract)
  step, params, digest = checkpoint.restore_run(
    workdir, weights, adapters or base, step
  )
  if adapters:
    params = lora.join(params, restore_base(config, base, workdir))
    placed = mesh and rules.shardings(mesh, base)
    merge = functools.partial(lora.merge, **config.model.lora)
    # Else there would be two of the model for a while.
    merge = jax.jit(merge, out_shardings=placed, donate_argnums=0)
    with warnings.catch_warnings():  # the adapters have nothing to become
      warnings.filterwarnings("ignore", "Some donated buffers were not usable")
      params = merge(params)
    config = config.copy_and_resolve_references()
    with config.unlocked():
      del config.model.lora
    model = make_model(config, codec)
  return Restored(
    config, model, params, codec, step, weights=weights, digest=digest
  )


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
  step, params, _ = checkpoint.restore_run(
    workdir, weights, vae.abstract_params(model), step
  )
  return RestoredVAE(model, {"model": sizes}, params, step)


def _check_weights(weights):
  if weights not in WEIGHTS and not weights.startswith("ema_"):
    known = ", ".join(WEIGHTS)
    raise UserError(
      f"weights={weights!r} is not one of {known}, nor ema_ and the digits of"
      " one of config.more_ema"
    )
