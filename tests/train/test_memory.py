"""A step that runs out of memory, really, says what held it."""

import contextlib
import pathlib
import resource

import jax
import jax.numpy as jnp
import optax
import pytest

from goku_jax.parallel import mesh as meshes
from goku_jax.train import memory
from goku_jax.train.step import init_state
from goku_jax.typing import UserError
from tests import runs

GIB = 2**30


@contextlib.contextmanager
def no_more_than(size):
  """Lets this process take `size` bytes more, and no further ones."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  before = resource.getrlimit(resource.RLIMIT_AS)
  limit = pages * resource.getpagesize() + size
  resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_out_of_memory_is_one_line_that_says_what_would_help():
  config = runs.read_config("flow")
  state = init_state(runs.flow_model()[1], optax.sgd(0.1))
  state = jax.tree.map(jnp.asarray, state)
  batch = jax.tree.map(jnp.asarray, runs.flow_batch())
  mesh = meshes.make_mesh(fsdp=2, sequence=4)
  large = jax.jit(lambda rng: jnp.sin(jax.random.normal(rng, (GIB,))))
  large = large.lower(jax.random.key(0)).compile()
  rng = jax.random.key(0)
  with (
    pytest.raises(UserError) as told,
    memory.explained(config, mesh, state, batch),
    no_more_than(GIB),
  ):
    jax.block_until_ready(large(rng))
  says = str(told.value)
  assert "\n" not in says
  held = memory.bytes_a_device(state.params) / GIB
  assert f"out of memory: a device holds, in GiB, parameters {held:.3g}" in says
  assert "(the last asked for 4)" in says
  assert (
    "micro_batches=2 or --config.mesh.fsdp=1 --config.mesh.sequence=8" in says
  )


def test_other_errors_pass():
  with (
    pytest.raises(ZeroDivisionError),
    memory.explained(None, None, None, None),
  ):
    raise ZeroDivisionError


@pytest.mark.parametrize(
  ("remat", "better"), [("keep_attention", "full"), ("full", "offload")]
)
def test_what_is_kept_between_passes_is_given_up_first(remat, better):
  config = runs.read_config("flow", model__remat=remat)
  told = memory.advice(config, meshes.make_mesh(fsdp=8))
  assert told.startswith(f"set --config.model.remat={better}")
  # Eight packs of eight ranks cannot be halved, so tokens are split further.
  assert told.endswith("--config.mesh.fsdp=4 --config.mesh.sequence=2")


def test_where_nothing_else_helps_there_must_be_fewer_packs():
  config = runs.read_config("flow", micro_batches=8)
  told = memory.advice(config, meshes.make_mesh(sequence=8))
  assert told == "set fewer data.num_packs"
