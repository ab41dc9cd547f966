"""The joint flow model: packs of latents, or of pixels, with captions."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np

from goku_jax import costs, files
from goku_jax.data import digits, packing, pipeline, sources
from goku_jax.models import attention
from goku_jax.parallel.attention import shard_attention
from goku_jax.parallel.batch import check_rows
from goku_jax.sample import codec as codecs
from goku_jax.sample import draw
from goku_jax.sample.restore import Restored, init_params, make_model
from goku_jax.train.flow_loss import make_loss
from goku_jax.train.task import Task
from goku_jax.typing import UserError

LATENTS = "latents.json"  # in the workdir: the manifest of its latents


def make_task(config, mesh) -> Task:
  """The flow model of a config."""
  data = config.data
  check_rows(mesh, config.micro_batches, num_packs=data.num_packs)
  if data.path:
    source = sources.Latents(data.path)
    codec = codecs.load_codec(data.path)
  else:
    source = sources.Pixels(digits.Digits(seed=config.seed, **data.digits))
    codec = codecs.Codec()
  attention_fn = shard_attention(attention.segment_attention, mesh)
  model = make_model(config, codec, attention_fn=attention_fn)
  _check_conditions(model, source)
  patch_size = tuple(model.config.patch_size)
  planner = packing.Planner(
    source.sizes(patch_size, data.max_text),
    capacity=packing.Capacity(**data.pack),
    num_packs=data.num_packs,
    lookahead=data.lookahead,
    seed=config.seed,
  )
  run = Restored(config, make_model(config, codec), None, codec, 0)
  prompts, asked = _asked(config.sample)
  try:
    draw.check(run, prompts, **asked)
  except UserError as error:
    raise UserError(f"config.sample: {error}") from error
  return Task(
    init_params=functools.partial(init_params, model),
    loss_fn=make_loss(model, **config.loss),
    batches=lambda first_step: pipeline.flow_batches(
      source,
      planner,
      patch_size=patch_size,
      first_step=first_step,
      num_steps=config.total_steps - first_step,
      host_index=jax.process_index(),
      host_count=jax.process_count(),
    ),
    work=functools.partial(_work, model.config),
    show=functools.partial(_show, run, prompts, asked),
    captions=_captions(prompts, asked["labels"]),
    picture=functools.partial(_picture, codec, patch_size),
    settle=functools.partial(_settle, data.path),
  )


def _check_conditions(model, source):
  """Refuses a model that the source's captions or classes do not steer."""
  cfg = model.config
  if cfg.text_width and not model.text_config:
    raise UserError(
      f"the model reads text embeddings of width {cfg.text_width} and the data"
      " has none: set model.text, or another model.variant"
    )
  if 0 < cfg.num_classes < source.num_classes:
    raise UserError(
      f"model.num_classes={cfg.num_classes} and the data has"
      f" {source.num_classes} classes: set that, or more"
    )


def _settle(path, workdir):
  """Copies the autoencoder and the manifest of the latents to the workdir.

  The run may then travel without them; and they may move, but not change.

  Raises:
    UserError: the run began with other latents.
  """
  if not path:
    return
  given, kept = pathlib.Path(path) / sources.MANIFEST, workdir / LATENTS
  if not kept.exists():
    files.write_whole(kept, given.read_bytes())
  shards = lambda file: json.loads(file.read_text())["shards"]
  if shards(given) != shards(kept):  # with their digests
    raise UserError(
      f"--config.data.path={path} holds other latents than this run began with:"
      " give those, or choose another --workdir"
    )
  folder = workdir / codecs.FOLDER
  if not folder.exists():
    partial = folder.with_suffix(".partial")  # a kill may cut the copy short
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(pathlib.Path(path) / codecs.FOLDER, partial)
    partial.rename(folder)


def _work(cfg, batch) -> tuple[float, int]:
  """Training FLOPs of a batch, and its tokens."""
  count = lambda ids: np.concatenate(
    [np.bincount(row[row > 0]) for row in ids if (row > 0).any()]
  )
  segments = count(batch["segment_ids_BL"])
  texts = count(batch["text_segment_ids_BS"])
  flops = costs.training_flops(
    segments[segments > 0].tolist(),
    texts[texts > 0].tolist() if cfg.text_width else (),
    width=cfg.width,
    depth=cfg.depth,
    mlp_ratio=cfg.mlp_ratio,
    patch_width=cfg.patch_width,
    text_width=cfg.text_width,
  )
  return flops, int(segments.sum())


def _asked(sample):
  """The prompts of a config and what else `draw` takes of it."""
  asked = sample.to_dict()
  prompts, labels = (list(asked.pop(k)) for k in ("prompts", "class_labels"))
  return prompts or [""] * len(labels), {"labels": labels or None, **asked}


def _captions(prompts, labels):
  """What the videos of `_show` are called."""
  if labels is None:
    return prompts
  pairs = zip(labels, prompts, strict=True)
  return [f"class {label} {prompt}".strip() for label, prompt in pairs]


def _show(run, prompts, asked, params, ema):
  """Fixed prompts, labels and seeds, drawn by raw and averaged parameters."""
  by = lambda tree: draw.draw(run._replace(params=tree), prompts, **asked)
  return {"raw": by(params), "ema": by(ema)}


def _picture(codec, patch_size, batch):
  """The videos of a host's batch, decoded back."""
  packs = packing.unpack(batch, patch_size=patch_size)
  samples = [sample for pack in packs for sample in pack]
  return codecs.decode(codec, [s["mean"] for s in samples[:16]])
