"""Attention on the mesh: packs by device, tokens of a pack by two exchanges.

Ulysses (arXiv:2309.14509) exchanges tokens for heads: each device has all the
tokens of some heads, and computes as if alone. Ring attention
(arXiv:2310.01889) hands keys and values around, and joins what it finds by
log-sum-exp. With `ring` below the axis `sequence` both work together: `ring`
groups of neighbours, Ulysses within each, a ring over their like.

A kernel is `(q, k, v, q_ids, k_ids) -> out, log-sum-exp`, as `attend` in
`models/attention.py`: it sees whole segments of packs, and no mesh.

Letters: B packs, L tokens, S text tokens, N heads, K head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from goku_jax.parallel import rules
from goku_jax.typing import UserError


def shard_attention(kernel, mesh: Mesh, *, ring: int = 1):
  """Self-attention of tokens that lie over `sequence`, heads over `tensor`.

  Left to the partitioner, a kernel's loop over packs would gather them all.

  Args:
    kernel: see above.
    mesh: where queries, keys and values lie alike.
    ring: parts of `sequence` that a ring joins; the rest is Ulysses, whose
      heads are padded where it does not divide them.

  Raises:
    UserError: `ring` does not divide `sequence`.
  """
  sequence = mesh.shape[rules.TOKENS]
  if ring < 1 or sequence % ring:
    raise UserError(
      f"attention.ring={ring} does not divide mesh.sequence={sequence}: set one"
      " of its divisors"
    )
  if mesh.size == 1:
    return lambda *args: kernel(*args)[0]
  attend = functools.partial(_exchange, kernel, sequence // ring, ring)
  heads, ids = (
    P(rules.BATCH, rules.TOKENS, rules.HEADS),
    P(rules.BATCH, rules.TOKENS),
  )
  return jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=(heads, heads, heads, ids, ids),
    out_specs=heads,
    check_vma=False,  # kernels of Pallas do not say how their outputs vary
  )


def shard_text_attention(kernel, mesh: Mesh):
  """Attention to text, whose keys and values each device gathers whole.

  Each has made those of its part of the text. Queries, of tokens or of text,
  stay where they are. What the mesh does not divide is not split.
  """
  if mesh.size == 1:
    return lambda *args: kernel(*args)[0]

  def attention_fn(q_BLNK, k_BSNK, *others):
    split = lambda size, axis: None if size % mesh.shape[axis] else axis
    tokens, text = (split(x.shape[1], rules.TOKENS) for x in (q_BLNK, k_BSNK))
    heads = split(q_BLNK.shape[2], rules.HEADS)
    keys = P(rules.BATCH, text, heads)
    queries = P(rules.BATCH, tokens, heads)

    def attend(q, k, v, *ids):
      if text:
        whole = lambda x: jax.lax.all_gather(x, text, axis=1, tiled=True)
        k, v = whole(k), whole(v)
      return kernel(q, k, v, *ids)[0]

    return jax.shard_map(
      attend,
      mesh=mesh,
      in_specs=(queries, keys, keys, P(rules.BATCH, tokens), P(rules.BATCH)),
      out_specs=queries,
      check_vma=False,
    )(q_BLNK, k_BSNK, *others)

  return attention_fn


def check_heads(mesh: Mesh, num_heads: int):
  """Raises `UserError` unless the axis `tensor` splits the heads evenly."""
  tensor = mesh.shape[rules.HEADS]
  if num_heads % tensor:
    raise UserError(
      f"mesh.tensor={tensor} does not divide the model's {num_heads} heads: set"
      " one of their divisors; mesh.sequence takes any"
    )


def _exchange(kernel, ulysses, ring, q, k, v, q_ids, k_ids):
  """Attention of a device's tokens to those of its whole packs."""
  num_heads = q.shape[2]
  groups = [[r * ulysses + u for u in range(ulysses)] for r in range(ring)]
  swap = functools.partial(
    jax.lax.all_to_all,
    axis_name=rules.TOKENS,
    axis_index_groups=groups,
    tiled=True,
  )
  if ulysses > 1:
    pad = ((0, 0), (0, 0), (0, -num_heads % ulysses), (0, 0))
    q, k, v = (
      swap(jnp.pad(x, pad), split_axis=2, concat_axis=1) for x in (q, k, v)
    )
    q_ids, k_ids = (
      jax.lax.all_gather(
        ids, rules.TOKENS, axis=1, axis_index_groups=groups, tiled=True
      )
      for ids in (q_ids, k_ids)
    )
  out = _ring(kernel, ulysses, ring, q, k, v, q_ids, k_ids)
  if ulysses > 1:
    out = swap(out, split_axis=1, concat_axis=2)
  return out[:, :, :num_heads]


def _ring(kernel, stride, steps, q, k, v, q_ids, k_ids):
  """Attention to the keys of `steps` devices, each `stride` from the next."""
  size = stride * steps
  on = [(i, (i + stride) % size) for i in range(size)]
  out, lse = kernel(q, k, v, q_ids, k_ids)
  for _ in range(1, steps):
    k, v, k_ids = (jax.lax.ppermute(x, rules.TOKENS, on) for x in (k, v, k_ids))
    out, lse = _join(out, lse, *kernel(q, k, v, q_ids, k_ids))
  return out.astype(v.dtype)


def _join(out_BLNK, lse_BLN, more_BLNK, more_lse_BLN):
  """Attention to two parts of the keys, from that to each."""
  top = jax.lax.stop_gradient(jnp.maximum(lse_BLN, more_lse_BLN))
  one, two = jnp.exp(lse_BLN - top), jnp.exp(more_lse_BLN - top)
  total = one + two
  out = (one / total)[..., None] * out_BLNK
  return out + (two / total)[..., None] * more_BLNK, top + jnp.log(total)
