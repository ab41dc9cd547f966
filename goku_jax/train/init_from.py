"""The weights of another run to begin with: from stage to stage (section 2.4).

  --config.init_from=DIR[:STEP]     a run, and one of its checkpoints
  --config.init_weights=ema         or params, or another of its averages

Names and shapes must be those of this run, but for layers that a stage adds:
those are made anew, or left behind. Positions are no weights (RoPE), so other
resolutions and lengths need nothing.
"""

import re

import jax
import jax.numpy as jnp

from goku_jax import checkpoint
from goku_jax.sample import codec as codecs
from goku_jax.sample.restore import read_start
from goku_jax.trees import flatten
from goku_jax.typing import UserError

# What one stage has and another has not.
ADDED = re.compile(r"(^|\.)condition\.")  # image-to-video, section 2.5


def open_codec(config) -> codecs.Codec | None:
  """The autoencoder of the run to begin from, and its scale of latents.

  Another scale than it was trained at would be another task.

  Raises:
    UserError: as `read_start`; it has none, for it was trained on pixels.
  """
  start = read_start(config)
  if start is None:
    return None
  codec = codecs.load_codec(start.workdir)
  if codec.model is None:
    raise UserError(
      f"config.init_from={config.init_from} was trained on pixels, and this"
      " run is on latents"
    )
  return codec


def begin(config, state, abstract):
  """The initial state, at the weights that `config.init_from` names.

  Args:
    config: of the run.
    state: initial.
    abstract: its shapes and shardings.

  Raises:
    UserError: as `read_start`; the weights are not this run's, or damaged.
  """
  start = read_start(config)
  if start is None or state.base is not None:  # which is another one's already
    return state
  kind = config.init_weights
  wanted = flatten(abstract.params, "params", is_abstract=True)
  step, saved = checkpoint.saved_arrays(start.workdir, kind, start.step)
  made, left = compare(config.init_from, saved, wanted)
  read_as = {
    name: wanted.get(name, jax.ShapeDtypeStruct(**about))
    for name, about in saved.items()
  }
  step, found, _ = checkpoint.restore_run(start.workdir, kind, read_as, step)
  fresh = flatten(state.params, "params")
  leaves = [found.get(name, fresh[name]) for name in wanted]
  params = jax.tree.unflatten(jax.tree.structure(state.params), leaves)
  told = f"begins at {kind} of step {step} of {start.workdir}: "
  told += f"{len(wanted) - len(made)} arrays taken"
  for what, names in (("made anew", made), ("left", left)):
    if names:
      told += f", {len(names)} {what} ({', '.join(names)})"
  print(told, flush=True)
  copy = lambda: jax.tree.map(jnp.copy, params)  # donation wants buffers
  more = {name: copy() for name in state.more_ema or ()}
  return state.replace(params=copy(), ema=params, more_ema=more or None)


def compare(source: str, saved: dict, wanted: dict) -> tuple[list, list]:
  """Names of arrays that are made anew, and of those that are left behind.

  Raises:
    UserError: shapes differ, or names that no stage adds.
  """
  shapes = [
    f"{name} {tuple(saved[name]['shape'])} for {tuple(wanted[name].shape)}"
    for name in wanted
    if name in saved and tuple(saved[name]["shape"]) != wanted[name].shape
  ]
  made = [name for name in wanted if name not in saved]
  left = [name for name in saved if name not in wanted]
  lacks = [name for name in made if not ADDED.search(name)]
  more = [name for name in left if not ADDED.search(name)]
  told = [
    f"{len(names)} {what} ({', '.join(names[:3])})"
    for what, names in (
      ("of another shape", shapes),
      ("missing there", lacks),
      ("that this model has not", more),
    )
    if names
  ]
  if told:
    raise UserError(
      f"config.init_from={source} has another model: arrays {'; '.join(told)}"
    )
  return made, left
