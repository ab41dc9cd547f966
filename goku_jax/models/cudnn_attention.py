"""Attention within segments by cuDNN, for NVIDIA's GPUs from Hopper on.

cuDNN is told where each segment starts and how long it is, among queries and
among keys, and computes the pairs of tokens that meet, forward and backward,
and no others. JAX's public function tells it neither, so that the one below it
is called.

Letters: B packs, L queries, S keys, N heads, K head width, G segments.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from goku_jax.typing import UserError

TYPES = (jnp.bfloat16, jnp.float16)


def attend(q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS, *, segments: int):
  """As `models/attention.py` has it, on a GPU; the log-sum-exp is NaN.

  The queries of an id lie in one run, and so do its keys, as a packer lays
  them; ids below 0, of captions that are dropped, have one key and any queries.
  A pack that is not so gives NaN.

  Args:
    q_BLNK: queries, of one of TYPES; other arrays as there.
    k_BSNK: keys.
    v_BSNK: values.
    q_ids_BL: segment of each query, `segments` at most.
    k_ids_BS: of each key.
    segments: the most that a pack holds; a single one is at its start.

  Raises:
    UserError: the arrays are of another type.
  """
  if q_BLNK.dtype not in TYPES:
    raise UserError(
      f"attention.kernel=cudnn does not take {q_BLNK.dtype}: set auto or"
      " chunked, or model.dtype=bfloat16"
    )
  L = q_BLNK.shape[1]
  # cuDNN takes even lengths.
  pad = lambda x: jnp.pad(
    x, ((0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2))
  )
  q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS = map(
    pad, (q_BLNK, k_BSNK, v_BSNK, q_ids_BL, k_ids_BS)
  )
  queries, keys = (find_runs(ids, segments) for ids in (q_ids_BL, k_ids_BS))
  meet_BG = (queries.lengths > 0) & (keys.lengths > 0)
  met = [_at_tokens(meet_BG, ids) for ids in (q_ids_BL, k_ids_BS)]
  none = -1 if segments > 1 else 0
  tables = [
    jnp.where(meet_BG, x, none) for runs in (queries, keys) for x in runs[:2]
  ]
  out_BLNK = _attend(q_BLNK, k_BSNK, v_BSNK, tables, met)
  # Of one key the weight is 1, so that the output is its value.
  is_null_BS = k_ids_BS < 0
  null_BNK = jnp.einsum("BS,BSNK->BNK", is_null_BS.astype(v_BSNK.dtype), v_BSNK)
  is_null_BL = (q_ids_BL < 0)[..., None, None]
  out_BLNK = jnp.where(is_null_BL, null_BNK[:, None], _cut(out_BLNK, met[0]))
  right_B = queries.whole & keys.whole & (is_null_BS.sum(1) <= 1)
  if segments == 1:
    right_B &= (queries.starts == 0).all(1) & (keys.starts == 0).all(1)
  out_BLNK = jnp.where(right_B[:, None, None, None], out_BLNK, jnp.nan)
  lse_BLN = jnp.full(q_BLNK.shape[:3], jnp.nan, jnp.float32)
  return out_BLNK[:, :L], lse_BLN[:, :L]


class Runs(NamedTuple):
  """Where the tokens of each id lie, and whether each in one run."""

  starts: Int[Array, "B G"]
  lengths: Int[Array, "B G"]
  whole: jax.Array  # bool [B]


def find_runs(ids_BL: Int[Array, "B L"], segments: int) -> Runs:
  """The runs of ids 1 to `segments`; a larger one makes a pack not whole."""
  is_BGL = ids_BL[:, None] == 1 + jnp.arange(segments)[:, None]
  length_BG = is_BGL.sum(-1, dtype=jnp.int32)
  begins_BL = (jnp.diff(ids_BL, axis=1, prepend=0) != 0) & (ids_BL > 0)
  whole_B = begins_BL.sum(1) == (length_BG > 0).sum(1)
  return Runs(is_BGL.argmax(-1).astype(jnp.int32), length_BG, whole_B)


def _at_tokens(meet_BG, ids_BL):
  """What belongs to a segment, at its tokens; false at those of none."""
  meet_BG = jnp.pad(meet_BG, ((0, 0), (1, 0)))
  return jnp.take_along_axis(meet_BG, jnp.maximum(ids_BL, 0), 1, mode="clip")


def _cut(x_BLNK, met_BL):
  """Zeros where no segment is met: cuDNN leaves these places as they were."""
  return jnp.where(met_BL[..., None, None], x_BLNK, 0)


@jax.custom_vjp
def _attend(q_BLNK, k_BSNK, v_BSNK, tables, met):
  return _forward(q_BLNK, k_BSNK, v_BSNK, tables, met)[0]


def _forward(*args):
  """Output and gradient, what that needs under the name that remat may keep.

  cuDNN's own gradient has its log-sum-exp without a name.
  """
  *qkv, tables, met = args
  found = jax.vjp(functools.partial(_call, tables), *qkv)
  leaves, tree = jax.tree.flatten(found)
  given = {id(x) for x in qkv}
  made = {id(x): x for x in leaves if id(x) not in given}
  made = checkpoint_name(made, "attention")
  out_BLNK, pull = tree.unflatten([made.get(id(x), x) for x in leaves])
  return out_BLNK, (pull, met)


def _backward(found, d_out_BLNK):
  pull, (met_BL, met_BS) = found
  dq, dk, dv = pull(d_out_BLNK)
  return _cut(dq, met_BL), _cut(dk, met_BS), _cut(dv, met_BS), None, None


_attend.defvjp(_forward, _backward)


def _call(tables, q_BLNK, k_BSNK, v_BSNK):
  q_start, q_length, k_start, k_length = tables
  if q_start.shape[1] == 1:  # faster than a table
    tables = dict(q_seqlen=q_length[:, 0], kv_seqlen=k_length[:, 0])
  else:
    # Of starts there is one more than of lengths.
    grow = lambda x: jnp.pad(x, ((0, 0), (0, 1)), constant_values=-1)
    tables = dict(
      q_seqlen=q_length,
      kv_seqlen=k_length,
      q_offsets=grow(q_start),
      kv_offsets=grow(k_start),
    )
  return cudnn.dot_product_attention(
    *(q_BLNK, k_BSNK, v_BSNK),
    **tables,
    scale=q_BLNK.shape[-1] ** -0.5,
    mask_type=cudnn.MaskType.PADDING,
  )
