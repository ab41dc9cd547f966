"""The train step of a flow config, compiled for devices that need not exist."""

from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from goku_jax.data import schema
from goku_jax.models.goku import make_goku
from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.parallel.attention import check_heads
from goku_jax.sample.restore import init_params
from goku_jax.train.flow_loss import make_loss
from goku_jax.train.flow_task import mesh_fns
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.step import init_state, jit_step


class Lowered(NamedTuple):
  """A step that is traced and not compiled."""

  lowered: Any  # jax.stages.Lowered
  model: Any
  mesh: jax.sharding.Mesh
  state: Any  # its shapes and shardings


def lower_step(config, devices) -> Lowered:
  """The step that `train` would run on these devices.

  Args:
    config: of stage=flow; no data are opened.
    devices: real ones, or of a topology.

  Raises:
    UserError: as `train` would.
  """
  mesh = meshes.make_mesh(**config.mesh, devices=devices)
  data = config.data
  batches.check_rows(mesh, config.micro_batches, num_packs=data.num_packs)
  batches.check_tokens(mesh, tokens=data.pack.tokens)
  plain = make_goku(**config.model)
  check_heads(mesh, plain.config.num_heads)
  platform = devices[0].platform
  fns = mesh_fns(mesh, platform=platform, **config.attention)
  model = make_goku(**config.model, **fns)
  tx = make_optimizer(total_steps=config.total_steps, **config.optim)
  rng = jax.eval_shape(lambda: jax.random.key(config.seed))
  init = lambda rng: init_state(init_params(plain, rng), tx)
  with meshes.use(mesh):
    state = jax.eval_shape(init, rng)
    placed = rules.shardings(mesh, state)
    step = jit_step(
      placed,
      loss_fn=make_loss(model, **config.loss),
      dtype=model.config.dtype,
      tx=tx,
      ema_decay=config.ema_decay,
      micro_batches=config.micro_batches,
    )
    state = jax.tree.map(_abstract, state, placed)
    whole = NamedSharding(mesh, P())
    lowered = step.lower(
      state, abstract_batch(config, model, mesh), _abstract(rng, whole)
    )
  return Lowered(lowered, model, mesh, state)


def abstract_batch(config, model, mesh) -> dict:
  """Shapes and shardings of a batch of a config."""
  data, cfg = config.data, model.config
  sizes = dict(
    B=data.num_packs,
    L=data.pack.tokens,
    S=data.pack.text,
    G=data.pack.segments,
    P=cfg.patch_width,
    E=0 if model.text_config else cfg.text_width,
  )
  return {
    name: jax.ShapeDtypeStruct(
      schema.shape_of(name, **sizes),
      dtype,
      sharding=NamedSharding(mesh, rules.batch_spec(name)),
    )
    for name, dtype in schema.FLOW.items()
  }


def _abstract(x, sharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
