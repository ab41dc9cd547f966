"""Attention on eight devices equals attention on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import attention
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel.attention import shard_attention
from goku_jax.parallel.batch import place


def inputs():
  rng = np.random.default_rng(0)
  draw = lambda n: rng.standard_normal((16, n, 2, 8), np.float32)
  q_ids = rng.integers(0, 3, (16, 12))
  k_ids = rng.integers(-1, 3, (16, 5))
  return dict(q=draw(12), k=draw(5), v=draw(5), q_ids=q_ids, k_ids=k_ids)


def results(attention_fn, batch):
  def loss(q, k, v):
    out = attention_fn(q, k, v, batch["q_ids"], batch["k_ids"])
    return jnp.sum(jnp.sin(out)), out

  grad = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
  return jax.device_get(grad(batch["q"], batch["k"], batch["v"]))


@pytest.mark.parametrize("replica", [1, 2])
@pytest.mark.parametrize("few", [0, attention.FEW_LOGITS])
def test_eight_devices_give_the_values_and_gradients_of_one(
  replica, few, monkeypatch
):
  monkeypatch.setattr(attention, "FEW_LOGITS", few)
  mesh = meshes.make_mesh(replica=replica)
  batch = inputs()
  sharded = shard_attention(attention.segment_attention, mesh)
  with meshes.use(mesh):
    split = results(sharded, place(mesh, batch))
  plain = results(
    lambda *args: attention.segment_attention(*args),
    jax.tree.map(jnp.asarray, batch),
  )
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, split, plain)


def test_no_pack_leaves_its_device():
  mesh = meshes.make_mesh()
  batch = place(mesh, inputs())
  sharded = jax.jit(shard_attention(attention.segment_attention, mesh))
  text = sharded.lower(*batch.values()).compile().as_text()
  for collective in ("all-gather", "all-to-all", "collective-permute"):
    assert collective not in text
