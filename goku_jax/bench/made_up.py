"""Training a flow config on packs of noise, where there are no data."""

import functools
import itertools

import numpy as np

from goku_jax.data import packing, schema, tokenize
from goku_jax.flow.objective import make_loss
from goku_jax.parallel import batch as batches
from goku_jax.plan import step
from goku_jax.sample.restore import init_params
from goku_jax.train import flow_task
from goku_jax.train.task import Task


def make_task(config, mesh) -> Task:
  """The flow model of a config; each pack is as `config.plan` says.

  Raises:
    UserError: as `train` would.
  """
  batches.check_rows(
    mesh, config.micro_batches, num_packs=config.data.num_packs
  )
  plain, model = step.make_models(config, mesh)
  grid, text = (1, 1, config.plan.segment), config.plan.text
  batch = make_batch(config, model, mesh, grid, text)
  return Task(
    init_params=functools.partial(init_params, plain),
    loss_fn=make_loss(model, **config.loss.to_dict()),
    batches=lambda first_step: itertools.repeat(batch),
    work=functools.partial(flow_task.work, model.config),
    show=None,
    captions=[],
    picture=None,
    settle=None,
    dtype=model.config.dtype,
  )


def make_batch(config, model, mesh, grid, text: int) -> dict:
  """This host's packs, each of one segment of noise.

  Args:
    config: of stage=flow.
    model: of it.
    mesh: over which the packs lie.
    grid: frames, height and width of the segment, in tokens.
    text: tokens of its caption.
  """
  cfg, data = model.config, config.data
  rng = np.random.default_rng(0)
  sides = np.array(grid) * np.array(cfg.patch_size)
  shape = (*sides.tolist(), cfg.latent_channels)
  width = 0 if model.text_config else cfg.text_width
  sample = {
    "mean": rng.standard_normal(shape, np.float32),
    "logvar": np.broadcast_to(schema.NO_LOGVAR, shape),
    "text_ids": np.full(text, tokenize.EOS, np.int32),
    "text_embeddings": rng.standard_normal((text, width), np.float32),
    "index": 0,
    "visit": 0,
    "class": 0,
  }
  pack = packing.pack(
    [sample],
    packing.Capacity(**data.pack),
    patch_size=tuple(cfg.patch_size),
    channels=cfg.latent_channels,
    null_text=np.zeros((1, width), np.float16),
    conditioned=cfg.conditioned,
  )
  rows = len(batches.own_rows(mesh, data.num_packs))
  return {name: np.repeat(x, rows, 0) for name, x in pack.items()}
