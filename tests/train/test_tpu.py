"""The step compiled for TPUs that are not there: FSDP's traffic and memory.

It needs the extra `tpu`: `bash launch/test.sh --tpu tests/train/test_tpu.py`.
"""

import functools
import re

import jax
import pytest
from jax.experimental import topologies

from goku_jax.data import schema
from goku_jax.flow.objective import make_loss
from goku_jax.models import attention, goku
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel import rules
from goku_jax.parallel.attention import shard_attention
from goku_jax.sample.restore import init_params
from goku_jax.train.optimizer import make_optimizer
from goku_jax.train.step import init_state, train_step
from tests import runs

pytestmark = [pytest.mark.tpu, pytest.mark.timeout(900)]


def compile_step(topology, variant, *, L, **sizes):
  """The train step over `fsdp`, two packs a device; and its state's shapes."""
  devices = topologies.get_topology_desc(topology, "tpu").devices
  mesh = meshes.make_mesh(devices=devices)
  model = goku.make_goku(
    variant,
    dtype="bfloat16",
    attention_fn=shard_attention(attention.attend, mesh),
    weights_fn=rules.scatter_gradients,
    **sizes,
  )
  config = runs.read_config()
  tx = make_optimizer(total_steps=100, **config.optim)
  packs = dict(B=2 * len(devices), P=model.config.patch_width, S=64, G=4)
  batch = schema.empty_packs(L=L, **packs)
  abstract = lambda x, sharding: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=sharding
  )
  with meshes.use(mesh):
    plain = goku.make_goku(variant, **sizes)
    init = lambda rng: init_state(init_params(plain, rng), tx)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, rng)
    placed = rules.shardings(mesh, state)
    rows = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(rules.BATCH)
    )
    step = jax.jit(
      functools.partial(
        train_step,
        loss_fn=make_loss(model, **config.loss.to_dict()),
        tx=tx,
        ema_decay=config.ema_decay,
      ),
      out_shardings=(placed, None),
      donate_argnames="state",
    )
    lowered = step.lower(
      jax.tree.map(abstract, state, placed),
      {name: abstract(x, rows) for name, x in batch.items()},
      abstract(rng, placed.step),
    )
    return lowered.compile(), state


def bytes_of(state):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def test_fsdp_gathers_weights_scatters_gradients_and_shares_the_state():
  text = dict(width=256, depth=1, num_heads=4)
  sizes = dict(width=512, num_heads=8, text=text)
  compiled, state = compile_step("v5e:2x4", "debug", L=128, **sizes)
  program = compiled.as_text()
  assert re.search(r" all-gather(-start)?\(", program)
  # The TPU's compiler fuses the sum of gradients with their split.
  assert re.search(r" reduce-scatter\(|calls=%all-reduce-scatter", program)
  memory = compiled.memory_analysis()  # of one device
  assert memory.alias_size_in_bytes == pytest.approx(  # what is donated
    bytes_of(state) / 8, rel=0.05
  )
