"""What a job runs on devices, lowered for some that need not exist."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from goku_jax.data import schema
from goku_jax.flow.objective import make_loss
from goku_jax.models.goku import make_goku
from goku_jax.parallel import batch as batches
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.parallel.attention import check_heads
from goku_jax.sample.restore import init_params, mesh_fns, process_of
from goku_jax.sample.sampler import integrate
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.step import cast, init_state, jit_step

STRIDE = (4, 8, 8)  # of Goku's autoencoder: frames, height, width
BRANCHES = 2  # of guidance, with captions and without, in one batch


class Lowered(NamedTuple):
  """A program that is traced and not compiled."""

  lowered: Any  # jax.stages.Lowered
  model: Any
  mesh: jax.sharding.Mesh
  state: Any  # its shapes and shardings
  init: Any = None  # a key -> the state


def lower_step(config, devices) -> Lowered:
  """The step that `train` would run on these devices.

  Args:
    config: of stage=flow; no data are opened.
    devices: real ones, or of a topology.

  Raises:
    UserError: as `train` would.
  """
  mesh = meshes.make_mesh(**config.mesh, devices=devices)
  num_packs = config.data.num_packs
  batches.check_rows(mesh, config.micro_batches, num_packs=num_packs)
  plain, model = make_models(config, mesh)
  return lower_training(
    config,
    mesh,
    model,
    abstract_batch(config, model, mesh),
    init_params=lambda rng: init_params(plain, rng),
    loss_fn=make_loss(model, **config.loss.to_dict()),
    dtype=model.config.dtype,
  )


def lower_training(
  config, mesh, model, batch, *, init_params, critic=None, **parts
) -> Lowered:
  """A training step on a mesh.

  Args:
    config: of any stage.
    mesh: of the devices.
    model: that is trained.
    batch: its shapes and shardings.
    init_params: a key -> parameters.
    critic: an opponent, or None.
    **parts: what else `jit_step` takes of a task.
  """
  tx = make_optimizer(total_steps=config.total_steps, **config.optim)
  rng = jax.eval_shape(lambda: jax.random.key(config.seed))

  def init(rng):
    state = init_state(init_params(rng), tx, critic and critic.init_params(rng))
    if state.base is None:
      return state
    return state.replace(base=cast(state.base, parts["dtype"]))

  with meshes.use(mesh):
    state, placed = rules.lay_out(mesh, init, rng)
    step = jit_step(
      placed,
      critic=critic,
      tx=tx,
      ema_decay=config.ema_decay,
      micro_batches=config.micro_batches,
      **parts,
    )
    lowered = step.lower(state, batch, whole(mesh, rng))
  return Lowered(lowered, model, mesh, state, init)


def lower_sample(config, devices) -> Lowered:
  """All steps from noise to latents, of a config by `for_sampling`.

  Raises:
    UserError: as `sample` would.
  """
  mesh = meshes.make_mesh(**config.mesh, devices=devices)
  plain, model = make_models(config, mesh)
  rng = jax.eval_shape(lambda: jax.random.key(config.seed))
  scalar = whole(mesh, jax.ShapeDtypeStruct((), jnp.float32))
  with meshes.use(mesh):
    params, _ = rules.lay_out(mesh, lambda rng: init_params(plain, rng), rng)
    batch = abstract_batch(config, model, mesh)
    lowered = integrate.lower(
      *(model, params, batch, whole(mesh, rng), scalar, scalar),
      config.sample.num_steps,
      process_of(config).solvers["euler"],
    )
  return Lowered(lowered, model, mesh, params)


def for_sampling(config, devices):
  """The config with packs as `sample` would have them: a clip in each.

  One for every rank; a pack is the clip of `config.sample` and what makes it a
  multiple of the kernels' lanes.
  """
  mesh = meshes.make_mesh(**config.mesh, devices=devices)
  frames, *sides = config.sample.num_frames, *config.sample.size
  patch = make_goku(**config.model).config.patch_size
  clip = (frames - 1) // STRIDE[0] + 1
  for side, stride, size in zip(sides, STRIDE[1:], patch[1:], strict=True):
    clip *= side // (stride * size)
  whole = 128 * mesh.shape[rules.TOKENS]
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.plan.segment = clip
    config.data.pack.tokens = math.ceil(clip / whole) * whole
    config.data.num_packs = batches.count_ranks(mesh)
  return config


def make_models(config, mesh):
  """The model alone, which makes parameters, and as this mesh runs it.

  Raises:
    UserError: the mesh does not split the packs or the heads.
  """
  batches.check_tokens(mesh, tokens=config.data.pack.tokens)
  plain = make_goku(**config.model)
  check_heads(mesh, plain.config.num_heads)
  return plain, make_goku(**config.model, **mesh_fns(config, mesh))


def whole(mesh, x):
  """The shape of an array that every device has."""
  return rules.abstract(x, NamedSharding(mesh, P()))


def abstract_batch(config, model, mesh) -> dict:
  """Shapes and shardings of a batch of a config."""
  data, cfg = config.data, model.config
  sizes = dict(
    B=data.num_packs,
    L=data.pack.tokens,
    S=data.pack.text,
    G=data.pack.segments,
    P=cfg.patch_width,
    K=cfg.condition_width,
    E=0 if model.text_config else cfg.text_width,
  )
  return abstract_arrays(schema.FLOW, sizes, mesh)


def abstract_arrays(dtypes, sizes, mesh) -> dict:
  """Shapes and shardings of a batch by a part of `schema` and its letters."""
  return {
    name: jax.ShapeDtypeStruct(
      schema.shape_of(name, **sizes),
      dtype,
      sharding=NamedSharding(mesh, rules.batch_spec(name)),
    )
    for name, dtype in dtypes.items()
  }
