"""The joint flow model: packs of latents, or of pixels, with captions."""

import functools
import itertools
from contextlib import nullcontext

import jax
import numpy as np

from goku_jax import costs
from goku_jax.data import given, packing, pipeline, planning
from goku_jax.eval import report, results, suites
from goku_jax.flow.objective import make_loss
from goku_jax.parallel.attention import check_heads
from goku_jax.parallel.batch import (
  check_rows,
  check_tokens,
  count_ranks,
  own_rows,
)
from goku_jax.sample import codec as codecs
from goku_jax.sample import draw
from goku_jax.sample.restore import Restored, init_params, make_model, mesh_fns
from goku_jax.train import flow_source, preflight
from goku_jax.train.task import Task
from goku_jax.typing import UserError


def make_task(config, mesh) -> Task:
  """The flow model of a config."""
  check_rows(mesh, config.micro_batches, num_packs=config.data.num_packs)
  check_tokens(mesh, tokens=config.data.pack.tokens)
  opened = flow_source.open_source(config)
  try:
    return _make_task(config, mesh, opened)
  except BaseException:
    opened.close()
    raise


def _make_task(config, mesh, opened):
  data = config.data
  source, codec = opened.source, opened.codec
  model = make_model(config, codec, **mesh_fns(config, mesh))
  check_heads(mesh, model.config.num_heads)
  _check_conditions(model, source)
  conditions = _read_given(config, model, source)
  patch_size = tuple(model.config.patch_size)
  planner = planning.Planner(
    source.sizes(patch_size, data.max_text),
    capacity=packing.Capacity(**data.pack),
    num_packs=data.num_packs,
    lookahead=data.lookahead,
    seed=config.seed,
    ranks=count_ranks(mesh),
    cost_fn=_pack_cost(model.config, data.cost_table, config.attention),
    **_groups(data, opened),
  )
  run = Restored(config, make_model(config, codec), None, codec, 0, opened.text)
  prompts, asked = _asked(config.sample)
  try:
    draw.check(run, prompts, **asked)
  except UserError as error:
    raise UserError(f"config.sample: {error}") from error
  return Task(
    init_params=functools.partial(init_params, run.model),
    loss_fn=make_loss(model, **config.loss.to_dict()),
    batches=lambda first_step, num_steps=config.total_steps: (
      pipeline.flow_batches(
        source,
        planner,
        patch_size=patch_size,
        first_step=first_step,
        num_steps=num_steps,
        given=conditions,
        rows_of=functools.partial(own_rows, mesh),
        threads=data.threads,
      )
    ),
    work=functools.partial(work, model.config),
    show=functools.partial(_show, run, prompts, asked),
    captions=_captions(prompts, asked["labels"]),
    picture=functools.partial(_picture, codec, patch_size),
    dtype=model.config.dtype,
    evaluate=functools.partial(
      _evaluate, run._replace(model=model, ranks=count_ranks(mesh))
    ),
    settle=opened.settle,
    close=opened.close,
    preflight=lambda first_step: preflight.tell(
      planner,
      opened,
      first_step=first_step,
      total_steps=config.total_steps,
      step_flops=functools.partial(_step_flops, model.config, planner),
    ),
  )


def _read_given(config, model, source) -> given.Given | None:
  """What tells the model of given frames, if it takes them."""
  if model.config.conditioned != ("given" in config.data):
    raise UserError(
      f"model.conditioned={model.config.conditioned} and data.given go together"
    )
  if not model.config.conditioned:
    return None
  conditions = given.Given(config.seed, **config.data.given)
  clips = np.flatnonzero(source.is_video)
  sample = source.read(int(clips[0]), 0) if len(clips) else {}
  needed = {"first", "last"} if config.data.given.first_last else {"first"}
  if sample and needed - sample.keys():
    raise UserError(
      "the latents lack clips' ends, each encoded alone: run prepare again"
    )
  return conditions


def _groups(data, opened) -> dict:
  """What the planner must know of shares: those of folders, of images."""
  names, member = opened.names, opened.member
  weights = _read_weights(data.weights, names)
  if weights is None and data.image_share is None:
    return {}
  kind = np.zeros(len(member), int)
  kinds = {"samples": 1.0}
  if data.image_share is not None:
    if not 0 <= data.image_share <= 1:
      raise UserError(
        f"data.image_share={data.image_share} is not between 0 and 1"
      )
    kind = np.asarray(opened.source.is_video, int)
    kinds = {"images": data.image_share, "clips": 1 - data.image_share}
  groups = kind * len(names) + member
  counts = np.bincount(groups, minlength=len(kinds) * len(names))
  counts = counts.reshape(len(kinds), len(names))
  for what, share, row in zip(kinds, kinds.values(), counts, strict=True):
    if share and not row.any():
      raise UserError(
        f"0 batches: {share:.0%} of the samples are to be {what} and there are"
        " none: set data.image_share"
      )
  shares = counts if weights is None else (counts > 0) * weights
  shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
  shares = (shares * np.array(list(kinds.values()))[:, None]).ravel()
  every = [f"{what} of {name}" for what in kinds for name in names]
  present, groups = np.unique(groups, return_inverse=True)
  return {
    "groups": groups,
    "shares": tuple(shares[present].tolist()),
    "names": [every[g] for g in present],
  }


def _read_weights(text, names):
  """The numbers of `data.weights`, one for each folder."""
  if text is None:
    return None
  try:
    weights = [float(part) for part in text.split(",")]
  except ValueError as error:
    raise UserError(f"data.weights={text!r}: set numbers, as 2,1") from error
  if len(weights) != len(names) or not all(w > 0 for w in weights):
    raise UserError(
      f"data.weights={text!r}: set {len(names)} numbers above 0, one for each"
      " folder of data.path"
    )
  return np.array(weights)


def _check_conditions(model, source):
  """Refuses a model that the source's captions or classes do not steer."""
  cfg = model.config
  width = source.null_text.shape[1]
  if cfg.text_width and not model.text_config and width != cfg.text_width:
    has = f"of width {width}" if width else "none"
    raise UserError(
      f"the model reads text embeddings of width {cfg.text_width} and the data"
      f" has {has}: set model.text_width, model.text, or another model.variant"
    )
  if cfg.num_classes and source.num_classes == 1:
    raise UserError(
      f"model.num_classes={cfg.num_classes} and the data has no classes, or"
      " folders of different ones: leave the model's out, or train on data with"
      " the same labels"
    )
  if 0 < cfg.num_classes < source.num_classes:
    raise UserError(
      f"model.num_classes={cfg.num_classes} and the data has"
      f" {source.num_classes} classes: set that, or more"
    )


def _pack_cost(cfg, table, attention):
  """Cost of a pack to its rank: measured times, else FLOPs by blocks."""
  if table:
    return costs.calibrated(table)
  blocks = {name: attention[name] for name in ("block", "key_block")}
  return functools.partial(costs.pack_flops, **blocks, **costs.sizes_of(cfg))


def _step_flops(cfg, planner, step) -> float:
  """Training FLOPs of a step of packs."""
  index = [i for pack in step for i, _ in pack]
  tokens, texts = planner.sizes[index].T.tolist()
  return costs.training_flops(
    tokens, texts if cfg.text_width else (), **costs.sizes_of(cfg)
  )


def work(cfg, batch) -> tuple[float, int]:
  """Training FLOPs of a batch, and its tokens."""
  none = np.zeros(0, int)
  count = lambda ids: np.concatenate(
    [none, *(np.bincount(row[row > 0]) for row in ids if (row > 0).any())]
  )
  segments = count(batch["segment_ids_BL"])
  texts = count(batch["text_segment_ids_BS"])
  flops = costs.training_flops(
    segments[segments > 0].tolist(),
    texts[texts > 0].tolist() if cfg.text_width else (),
    **costs.sizes_of(cfg),
  )
  return flops, int(segments.sum())


def _asked(sample):
  """The prompts of a config and what else `draw` takes of it."""
  asked = sample.to_dict()
  del asked["fit"]  # of given frames, of which there are none
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


def _evaluate(run, names, step, params, ema, workdir):
  """Runs suites on both kinds of weights; the first process keeps records.

  What has a record is not run again.
  """
  folder = workdir / "evals" / report.IN_TRAINING
  is_first = jax.process_index() == 0
  opened = results.open_results(folder) if is_first else nullcontext()
  with opened as log:
    for name, (kind, tree) in itertools.product(
      names, {"params": params, "ema": ema}.items()
    ):
      settings = run.config.evals[name].to_dict()
      if suites.everyone_has(log, name, step, kind, settings):
        continue
      at = run._replace(params=tree, step=step, weights=kind)
      out = folder / f"{step:08d}" / kind
      figures = suites.run_suite(name, at, out, settings)
      if log:
        log.add(name, step, kind, settings, figures)
    if log:
      report.write(workdir, folder.parent)


def _picture(codec, patch_size, batch):
  """The videos of a host's batch, decoded back."""
  packs = packing.unpack(batch, patch_size=patch_size)
  samples = [sample for pack in packs for sample in pack]
  return codecs.decode(codec, [s["mean"] for s in samples[:16]])
