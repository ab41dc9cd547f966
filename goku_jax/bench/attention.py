"""Pairs of tokens that attention executes on packs, over those it needs.

A segment of s tokens needs s^2 pairs. Kernels run whole blocks of queries and
keys: stock splash all of a pack, ours (`models/splash.py`) those whose segments
meet, and the chunked one all chunks from the first that meets to the last.

The mixes are those of the suite `packing` at 288p, where segments are shortest,
in packs as long as `configs/joint.py` has there, and of all sizes together. An
image at 288p is a pack of its own, `data.pack=(tokens=576, text=513,
segments=1)`, and 57 of them stand for one of 32,768 tokens, where neighbours
would share blocks. They stay full, since all shapes have about as many tokens.

Letters: B packs, L tokens, N heads, K head width, n, m chunks of queries, keys.
"""

import functools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.bench import packing as mixes
from goku_jax.data.packing import Capacity
from goku_jax.data.planning import Planner
from goku_jax.models import attention, splash

NUM_PACKS = 64  # a step
CHUNK = 1024  # of `attention.attend`
HEADS = (2, 64)  # of what is timed, and their width
TIMED_TOKENS = 4608  # in all packs of a call
KERNELS = ("forward", "dq", "dkv")


class Case(NamedTuple):
  """Packs of a mix, and the blocks of the kernels."""

  image_share: float  # of samples
  area: int  # tokens of a frame, at most
  capacity: Capacity
  block: int = 1024
  key_block: int = 2048


LONG = Capacity(tokens=36_864, text=8_192, segments=64)
CASES = {  # at 288p
  "text_to_image": Case(1, 576, Capacity(tokens=576, text=513, segments=1)),
  "joint": Case(mixes.IMAGE_SHARE, 576, LONG),
  "video": Case(0, 576, LONG),
}
OTHERS = {
  "text_to_image_in_long_packs": Case(1, 576, Capacity(32_768, 16_384, 64)),
  "text_to_image_of_all_sizes": Case(
    1, 4080, Capacity(32_768, 8_192, 64), block=512, key_block=1024
  ),
  "joint_of_all_sizes": Case(mixes.IMAGE_SHARE, 4080, mixes.CAPACITY),
  "video_of_all_sizes": Case(0, 4080, mixes.CAPACITY),
}


def compare(rounds: int) -> dict:
  """Figures of each mix, and times of the chunked kernel on this device.

  Times are of packs of TIMED_TOKENS in all, their segments shortened alike, the
  least of the rounds; ratios are the seconds of jax.nn.dot_product_attention,
  given a mask, over ours.
  """
  found = {}
  for name, case in CASES.items():
    ids_BL = plan(case)
    found[name] = figures(ids_BL, case) | times(rounds, shorten(ids_BL))
  for name, case in OTHERS.items():
    found[name] = figures(plan(case), case)
  return found


def plan(
  case: Case, num_samples: int = mixes.NUM_SAMPLES, num_steps: int = 4
) -> np.ndarray:
  """Segment ids of the packs of some steps, int [B, L]."""
  mix = mixes.make_mix(num_samples)
  is_clip, area = mix[:, 0] > 1, mix[:, 1:3].prod(1)
  shares = (case.image_share, 1 - case.image_share)
  mix = mix[(area <= case.area) & (np.array(shares)[is_clip.astype(int)] > 0)]
  sizes = np.stack([mix[:, :3].prod(1), mix[:, 3]], axis=1)
  planner = Planner(
    sizes,
    capacity=case.capacity,
    num_packs=NUM_PACKS,
    lookahead=min(mixes.LOOKAHEAD, num_samples),
    seed=0,
    groups=mix[:, 0] > 1,
    shares=shares,
    names=("images", "clips"),
  )
  packs = [pack for step in range(num_steps) for pack in planner.step(step)]
  layouts = [sizes[[i for i, _ in pack], 0].tolist() for pack in packs]
  return lay(layouts, case.capacity.tokens)


def lay(layouts: list[list[int]], length: int) -> np.ndarray:
  """Segment ids [B, length] of segments of these lengths, as packs have."""
  ids_BL = np.zeros((len(layouts), length), np.int32)
  for ids_L, layout in zip(ids_BL, layouts, strict=True):
    used = np.repeat(1 + np.arange(len(layout)), layout)
    ids_L[: len(used)] = used
  return ids_BL


def shorten(ids_BL: np.ndarray) -> np.ndarray:
  """As many packs, or as much of every segment of one, as is timed."""
  length = ids_BL.shape[1]
  packs = max(1, TIMED_TOKENS // length)
  return ids_BL[:packs, :: max(1, length // TIMED_TOKENS)]


def figures(ids_BL: np.ndarray, case: Case) -> dict:
  """Pairs executed over those needed, by kernel; the most of ours first.

  `fill` is the share of token places that hold a token, `blocks` what the
  kernels take of the case's in packs of this length.
  """
  needed = needed_pairs(ids_BL)
  blocks = fit_blocks(ids_BL.shape[1], case.block, case.key_block)
  ours = splash_pairs(ids_BL, blocks)
  return {
    "executed_over_needed": max(ours.values()) / needed,
    **{name: pairs / needed for name, pairs in ours.items()},
    "stock": stock_pairs(ids_BL, blocks) / needed,
    "chunked": chunked_pairs(ids_BL, CHUNK) / needed,
    "fill": float((ids_BL > 0).mean()),
    "pack_tokens": ids_BL.shape[1],
    "blocks": blocks,
  }


def needed_pairs(ids_BL: np.ndarray) -> int:
  """Pairs of tokens of one segment."""
  return sum(int((np.bincount(ids)[1:] ** 2).sum()) for ids in ids_BL)


def fit_blocks(length: int, block: int, key_block: int) -> tuple[int, int]:
  """Queries and keys of a block, as `splash.attend` has it for short packs."""
  most = -(-length // splash.LANES) * splash.LANES
  return min(block, most), min(key_block, most)


def splash_pairs(ids_BL: np.ndarray, blocks: tuple[int, int]) -> dict[str, int]:
  """Pairs that each of our splash kernels executes."""
  found = _splash_blocks(ids_BL, blocks)
  pairs = (int(count) * math.prod(blocks) for count in found)
  return dict(zip(KERNELS, pairs, strict=True))


@functools.partial(jax.jit, static_argnums=1)
def _splash_blocks(ids_BL, blocks):
  """Pairs of blocks in the tables that each kernel is given, of all packs."""
  pad = lambda block: jnp.pad(ids_BL, ((0, 0), (0, -ids_BL.shape[1] % block)))
  q_ids, k_ids = map(pad, blocks)
  q_ids = jnp.where(q_ids == 0, attention.NO_ID, q_ids)
  tables = jax.vmap(lambda q, k: splash._tables(q, k, blocks))(q_ids, k_ids)
  along_keys, along_queries = (jnp.sum(t.block_mask, dtype=int) for t in tables)
  return along_keys, along_keys, along_queries


def stock_pairs(ids_BL: np.ndarray, blocks: tuple[int, int]) -> int:
  """Pairs that stock splash executes: all, to the end of the last block."""
  B, L = ids_BL.shape
  return B * math.prod(-(-L // block) * block for block in blocks)


def chunked_pairs(ids_BL: np.ndarray, chunk: int) -> int:
  """Pairs that the chunked kernel walks over."""
  ids_Bnc = attention._cut(jnp.asarray(ids_BL), chunk)
  k_ids = jnp.where(ids_Bnc == 0, attention.NO_ID, ids_Bnc)
  first_Bn, end_Bn = jax.vmap(attention._reach)(ids_Bnc, k_ids)
  chunks = int(jnp.maximum(end_Bn - first_Bn, 0).sum())  # below 0: meets none
  return chunks * ids_Bnc.shape[2] ** 2


def times(rounds: int, ids_BL: np.ndarray) -> dict:
  """Seconds of the chunked kernel and of JAX's, in turns; the first compile."""
  calls = _calls(jnp.asarray(ids_BL))
  for call in calls.values():
    jax.block_until_ready(call())
  least = dict.fromkeys(calls, math.inf)
  for _ in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      least[name] = min(least[name], time.perf_counter() - start)
  ratio = lambda name: least[f"jax_{name}"] / least[name]
  return {
    "ratio": ratio("seconds"),
    "gradients_ratio": ratio("gradients_seconds"),
    **least,
    "timed_packs": ids_BL.shape,
  }


def _calls(ids_BL):
  """Forward, and the gradients of all three inputs, by both."""
  draw = lambda i: jax.random.normal(jax.random.key(i), (*ids_BL.shape, *HEADS))
  qkv = tuple(map(draw, range(3)))

  def masked(q, k, v):
    meet_BLL = ids_BL[:, :, None] == ids_BL[:, None]
    meet_BLL &= ids_BL[:, :, None] != 0
    return jax.nn.dot_product_attention(q, k, v, mask=meet_BLL[:, None])

  ours = lambda *qkv: attention.segment_attention(
    *qkv, ids_BL, ids_BL, chunk=CHUNK
  )
  calls = {}
  for prefix, attend in (("", ours), ("jax_", masked)):
    loss = lambda *qkv, attend=attend: jnp.square(attend(*qkv)).sum()
    forward, grad = jax.jit(attend), jax.jit(jax.grad(loss, (0, 1, 2)))
    calls[f"{prefix}seconds"] = functools.partial(forward, *qkv)
    calls[f"{prefix}gradients_seconds"] = functools.partial(grad, *qkv)
  return calls
