"""Attention on eight devices equals attention on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import attention
from goku_jax.parallel import attention as parallel
from goku_jax.parallel import mesh as meshes
from goku_jax.parallel.batch import place
from goku_jax.typing import UserError

B, L, K = 8, 48, 8

MESHES = {  # axes of the mesh, and the ring
  "packs": (dict(), 1),
  "replicas": (dict(replica=2), 1),
  "tensor": (dict(tensor=2), 1),
  "ulysses": (dict(sequence=4), 1),
  "ulysses over all": (dict(fsdp=1, sequence=8), 1),
  "ring": (dict(sequence=4), 4),
  "ulysses x ring": (dict(fsdp=1, sequence=8), 2),
  "ulysses x ring, wider": (dict(fsdp=1, sequence=8), 4),
  "all": (dict(fsdp=1, replica=2, sequence=2, tensor=2), 2),
}


@functools.cache
def inputs(num_heads, packed=True):
  """Queries, keys, values and ids; without packing one segment, no padding."""
  rng = np.random.default_rng(0)
  draw = lambda: rng.standard_normal((B, L, num_heads, K), np.float32)
  ids = np.sort(rng.integers(1, 5, (B, L)), 1) if packed else np.ones((B, L))
  if packed:
    ids[0] = 0  # a pack of padding
    ids[1:, -5:] = 0
  ids = ids.astype(np.int32)
  return dict(
    q_BLNK=draw(), k_BLNK=draw(), v_BLNK=draw(), q_ids_BL=ids, k_ids_BL=ids
  )


def results(attention_fn, q, k, v, q_ids, k_ids):
  """Output, and gradients of a loss that weighs every number of it."""

  def loss(q, k, v):
    out = attention_fn(q, k, v, q_ids, k_ids)
    return jnp.sum(jnp.sin(out)), out

  grad = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
  return jax.device_get(grad(q, k, v))


def assert_equal(split, plain):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
  jax.tree.map(close, split, plain)


@functools.cache
def plain(num_heads, packed):
  arrays = map(jnp.asarray, inputs(num_heads, packed).values())
  return results(attention.segment_attention, *arrays)


# Eight devices divide eight heads, and not six.
@pytest.mark.parametrize("num_heads", [8, 6])
@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_give_the_values_and_gradients_of_one(name, num_heads):
  axes, ring = MESHES[name]
  mesh = meshes.make_mesh(**axes)
  fn = parallel.shard_attention(attention.attend, mesh, ring=ring)
  with meshes.use(mesh):
    split = results(fn, *place(mesh, inputs(num_heads)).values())
  assert_equal(split, plain(num_heads, True))


@pytest.mark.parametrize("name", ["packs", "ulysses x ring"])
def test_long_packs_and_whole_ones_are_no_exception(name, monkeypatch):
  monkeypatch.setattr(attention, "FEW_LOGITS", 0)
  axes, ring = MESHES[name]
  mesh = meshes.make_mesh(**axes)
  fn = parallel.shard_attention(attention.attend, mesh, ring=ring)
  with meshes.use(mesh):
    split = results(fn, *place(mesh, inputs(8, packed=False)).values())
  assert_equal(split, plain(8, False))


@pytest.mark.parametrize("num_heads", [8, 3])
@pytest.mark.parametrize("length", [L, 9])
@pytest.mark.parametrize("axes", [dict(sequence=4), dict(tensor=2, sequence=2)])
def test_text_is_whole_on_every_device(axes, length, num_heads):
  """Queries of tokens, and of text, which the mesh need not divide."""
  rng = np.random.default_rng(1)
  draw = lambda n: rng.standard_normal((B, n, num_heads, K), np.float32)
  args = [draw(length), draw(7), draw(7)]
  args += [rng.integers(-1, 3, (B, n), np.int32) for n in (length, 7)]
  args = [jnp.asarray(x) for x in args]
  mesh = meshes.make_mesh(**axes)
  with meshes.use(mesh):
    split = results(
      parallel.shard_text_attention(attention.attend, mesh), *args
    )
  assert_equal(split, results(attention.segment_attention, *args))


def test_no_pack_leaves_its_device_and_ulysses_exchanges_heads_alone():
  texts = {}
  for name in ("packs", "ulysses"):
    mesh = meshes.make_mesh(**MESHES[name][0])
    batch = place(mesh, inputs(8)).values()
    fn = jax.jit(parallel.shard_attention(attention.attend, mesh))
    texts[name] = fn.lower(*batch).compile().as_text()
  collectives = ("all-gather(", "all-to-all(", "collective-permute(")
  assert not any(name in texts["packs"] for name in collectives)
  assert texts["ulysses"].count("all-to-all(") == 4
  gathered = [x for x in texts["ulysses"].splitlines() if " all-gather(" in x]
  assert all("s32[" in line for line in gathered)  # ids


def test_what_cannot_be_split_is_one_line():
  mesh = meshes.make_mesh(sequence=4, tensor=2)
  with pytest.raises(UserError, match=r"ring=3 does not divide mesh\.sequence"):
    parallel.shard_attention(attention.attend, mesh, ring=3)
  parallel.check_heads(mesh, 4)
  with pytest.raises(UserError, match=r"tensor=2 does not divide .* 3 heads"):
    parallel.check_heads(mesh, 3)
