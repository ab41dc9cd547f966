"""The autoencoder: clips and single images together."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.data import digits, pipeline, videos
from goku_jax.eval import lpips
from goku_jax.models import discriminator, vae, vae_stream
from goku_jax.models.judges.lpips import MIN_SIDE
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel.batch import check_rows, fetch, own_rows
from goku_jax.parallel.frames import shard_frames
from goku_jax.sample.codec import to_uint8
from goku_jax.train.step import Critic
from goku_jax.train.task import Task
from goku_jax.train.vae_gan import gan_grads
from goku_jax.train.vae_loss import reconstruct, reconstruction_loss, vae_loss
from goku_jax.typing import UserError

SHOWN_LATENTS = 4  # frames of latents at once


class Trained(NamedTuple):
  """The autoencoder of a config and what it is trained by."""

  model: vae.VAE
  loss_fn: Callable
  critic: Critic | None  # the discriminator and its game
  needs_side: int  # pixels that judges need of a picture's sides


def make_trained(config, mesh) -> Trained:
  """What is trained on a mesh, without data.

  Raises:
    UserError: a setting that does not go, or lacks a file.
  """
  counts = {name: config.data[name] for name in ("num_clips", "num_images")}
  check_rows(mesh, config.micro_batches, **counts)
  if not config.data.num_clips:
    raise UserError("data.num_clips=0: set 1 or more, pictures show clips")
  model = vae.make_vae(**config.model)
  if model.config.norm == "group":
    raise UserError(
      "model.norm=group is for weights of others, over whose chunks nothing is"
      " trained here: leave it out"
    )
  _check_held_out(config)
  loss, gan = _read_loss(config.loss)
  apply_fns = {
    "video": shard_frames(model, mesh),
    "image": lambda params, *args: model.apply({"params": params}, *args),
  }
  through = dict(apply_fns=apply_fns, model=model)
  return Trained(
    model,
    functools.partial(vae_loss, **through, **loss),
    gan and _make_critic(through, loss, **gan),
    MIN_SIDE if "lpips_fn" in loss else 1,
  )


def make_task(config, mesh) -> Task:
  """The autoencoder of a config."""
  model, loss_fn, critic, needs_side = make_trained(config, mesh)
  raw, held_out = _sources(config)
  batches = functools.partial(
    pipeline.vae_batches,
    raw,
    num_clips=config.data.num_clips,
    num_images=config.data.num_images,
    seed=config.seed,
  )
  shown = np.stack([held_out[i]["video"] for i in (1, 3, 5, 7)])
  model.latent_shape(shown.shape)  # refuses what the stride does not divide
  if min(shown.shape[2:4]) < needs_side:
    raise UserError(
      f"LPIPS needs {needs_side} pixels a side: set a larger crop, or"
      " loss.lpips_weight=0"
    )
  return Task(
    init_params=lambda rng: model.init(rng, jnp.zeros(shown.shape))["params"],
    loss_fn=loss_fn,
    batches=lambda first_step, num_steps=config.total_steps: batches(
      first_step=first_step,
      num_steps=num_steps,
      rows_of=functools.partial(own_rows, mesh),
    ),
    work=functools.partial(_work, model),
    show=functools.partial(_show, model, shown),
    captions=[f"clip {i}" for i in range(len(shown))],
    picture=_first_videos,
    dtype=model.config.dtype,
    settle=lambda workdir: None,
    critic=critic,
  )


def _read_loss(config):
  """Settings of the loss, the judge loaded, and of the game, if there is one.

  Raises:
    UserError: LPIPS is weighed and its network is not given, or a size is
      none.
  """
  loss = config.to_dict()
  gan, path = loss.pop("gan", None), loss.pop("lpips_path", None)
  if loss.get("lpips_weight") and not path:
    raise UserError(
      f"loss.lpips_weight={loss['lpips_weight']} needs the network: set"
      " loss.lpips_path to a folder by `convert --format=lpips`, or"
      " loss.lpips_weight=0"
    )
  if loss.get("lpips_weight"):
    if loss["lpips_frames"] < 1:
      raise UserError("loss.lpips_frames: set 1 or more")
    loss["lpips_fn"] = lpips.load(path)
  if not gan or not gan["weight"]:
    return loss, None
  if gan["width"] < 1 or gan["width"] % discriminator.GROUPS:
    raise UserError(
      f"loss.gan.width={gan['width']}: set a multiple of {discriminator.GROUPS}"
    )
  return loss, gan


def _make_critic(through, loss, *, weight, start_step, r1_weight, **sizes):
  """The discriminator, and the gradients of the game."""
  critic = discriminator.Discriminator(**sizes)
  return Critic(
    init_params=lambda rng: critic.init(
      jax.random.fold_in(rng, 1), jnp.zeros((1, 1, 8, 8, 3))
    )["params"],
    grad_fn=functools.partial(
      gan_grads,
      reconstruct_fn=functools.partial(reconstruct, **through),
      loss_fn=functools.partial(reconstruction_loss, **loss),
      critic_fn=lambda params, video: critic.apply({"params": params}, video),
      weight=weight,
      start_step=start_step,
      r1_weight=r1_weight,
    ),
  )


def _check_held_out(config):
  """Refuses a judgement of what was trained on under another name."""
  judged = config.get("evals", {}).get("reconstruction", {}).get("held_out")
  films = config.data.get("videos")
  if not judged or not films:
    return
  if films.segment_frames or judged > films.held_out:
    raise UserError(
      f"evals.reconstruction.held_out={judged} judges what training sees: set"
      f" it to data.videos.held_out={films.held_out} or less, and to 0 where"
      " data.videos.segment_frames holds out parts of files"
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
  """Training FLOPs of a batch, and its latent positions.

  Of the autoencoder: those of LPIPS and of the discriminator are left out.
  """
  shapes = [batch[f"{kind}_BTHWC"].shape for kind in pipeline.KINDS]
  positions = sum(int(np.prod(model.latent_shape(s)[:-1])) for s in shapes)
  return 3.0 * positions * model.config.flops_per_position, positions


def _first_videos(batch) -> list[np.ndarray]:
  return [v for kind in pipeline.KINDS for v in batch[f"{kind}_BTHWC"]][:16]


def _show(model, shown, params, ema):
  """The same clips through raw and averaged parameters, on one device."""
  params, ema = fetch((params, ema))
  with meshes.use(meshes.make_one_device_mesh()):
    by = lambda tree: [_reconstruct(model, tree, clip) for clip in shown]
    through = lambda tree: by(jax.device_put(tree))
    return {"real": list(shown), "raw": through(params), "ema": through(ema)}


def _reconstruct(model, params, video_THWC):
  """One clip, chunk by chunk: long ones are trained on by many devices."""
  chunk = SHOWN_LATENTS * model.config.stride[0]
  mean, _ = vae_stream.encode(model, params, video_THWC[None], chunk=chunk)
  made = vae_stream.decode(model, params, mean, chunk=SHOWN_LATENTS)
  return to_uint8(made[0])
