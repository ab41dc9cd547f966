"""The bench of attention counts what kernels execute, and mixes meet the aim.

Letters: L tokens, N heads, K head width.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.bench import attention
from goku_jax.data import packing
from goku_jax.models import splash
from goku_jax.models.attention import NO_ID
from tests import runs

LAYOUTS = [[100, 30, 200], [256, 128], [40], [5] * 40]
LENGTH = 400  # whole in blocks of none
IDS = attention.lay(LAYOUTS, LENGTH)


def test_segments_lie_as_the_packer_lays_them():
  sample = lambda *sides: (
    dict(
      mean=np.zeros((1, *sides, 4)),
      logvar=np.zeros((1, *sides, 4)),
      text_ids=np.zeros(3, int),
      text_embeddings=np.zeros((3, 0)),
      index=0,
      visit=0,
    )
    | {"class": 0}
  )
  samples = [sample(4, 6), sample(2, 2), sample(8, 4)]
  packed = packing.pack(samples, packing.Capacity(20, 16, 4), channels=4)
  laid = attention.lay([[6, 1, 8]], 20)
  np.testing.assert_array_equal(packed["segment_ids_BL"], laid)


def meeting_blocks(ids, blocks):
  """By a mask of every pair of tokens: which blocks have one that meets."""
  ids = [np.pad(ids, (0, -len(ids) % block)) for block in blocks]
  mask = (ids[0][:, None] == ids[1]) & (ids[0][:, None] != 0)
  rows = mask.reshape(-1, blocks[0], len(ids[1]) // blocks[1], blocks[1])
  return rows.any((1, 3))


@pytest.mark.parametrize("blocks", [(16, 16), (16, 48), (128, 64), (400, 400)])
def test_splash_executes_the_blocks_that_a_mask_of_all_pairs_has(blocks):
  meets = [meeting_blocks(ids, blocks) for ids in IDS]
  met = sum(meet.sum() for meet in meets)
  # Queries that meet nothing run a block, or they would divide by zero.
  lonely = sum((~meet.any(1)).sum() for meet in meets)
  size = blocks[0] * blocks[1]
  assert attention.splash_pairs(IDS, blocks) == {
    "forward": (met + lonely) * size,
    "dq": (met + lonely) * size,
    "dkv": met * size,
  }


@pytest.mark.parametrize("chunk", [16, 100, 1024])
def test_chunks_run_from_the_first_that_meets_to_the_last(chunk):
  width = -(-LENGTH // -(-LENGTH // chunk))
  spans = 0
  for ids in IDS:
    for row in meeting_blocks(ids, (width, width)):
      places = np.flatnonzero(row)
      spans += places[-1] - places[0] + 1 if len(places) else 0
  assert attention.chunked_pairs(IDS, chunk) == spans * width**2


def test_stock_executes_whole_packs_and_few_pairs_are_needed():
  assert attention.stock_pairs(IDS, (128, 256)) == 4 * 512 * 512
  assert attention.needed_pairs(IDS) == sum(
    size**2 for layout in LAYOUTS for size in layout
  )
  even = attention.lay([[64] * 8], 512)  # segments and blocks are one
  case = attention.Case(1, 64, (512, 64, 8), block=128, key_block=128)
  found = attention.figures(even, case)
  assert found["executed_over_needed"] == 2
  assert found["stock"] == 8
  assert found["fill"] == 1


def test_interpreted_kernels_execute_the_blocks_that_are_counted():
  """What is not a number spreads to all computed with it, masked or not."""
  blocks = (128, 256)
  ids = attention.lay([[100, 30, 250, 70]], 512)
  q_ids = jnp.where(ids[0] == 0, NO_ID, ids[0])
  rng = np.random.default_rng(0)
  draw = lambda: jnp.asarray(rng.standard_normal((1, 512, 64)), jnp.float32)
  q, k, v, d_out = (draw() for _ in range(4))
  forward = jax.jit(
    lambda v: splash._forward(q, k, v, q_ids, ids[0], blocks, True)
  )
  backward = jax.jit(
    lambda v, out, lse, d_out: splash._backward(
      blocks,
      True,
      (q, k, v, q_ids, ids[0], out, lse),
      (d_out, jnp.zeros((1, 512))),
    )
  )
  spoil = lambda x_NLK, block: [
    x_NLK.at[:, at : at + block].set(jnp.nan) for at in range(0, 512, block)
  ]
  count = lambda x_NLK, block: int(
    jnp.isnan(x_NLK).reshape(-1, block * 64).any(1).sum()
  )
  (out, lse), _ = forward(v)
  found = dict.fromkeys(attention.KERNELS, 0)
  for bad in spoil(v, blocks[1]):
    found["forward"] += count(forward(bad)[0][0], blocks[0])
    found["dq"] += count(backward(bad, out, lse, d_out)[0], blocks[0])
  for bad in spoil(d_out, blocks[0]):
    found["dkv"] += count(backward(v, out, lse, bad)[2], blocks[1])
  size = blocks[0] * blocks[1]
  counted = attention.splash_pairs(ids, blocks)
  assert {name: n * size for name, n in found.items()} == counted
  assert counted["forward"] < attention.stock_pairs(ids, blocks)


def test_short_packs_are_one_block_of_the_kernel_too():
  array, ids = jnp.zeros((1, 576, 1, 64)), jnp.ones((1, 576), int)
  attend = lambda x: splash.attend(
    x, x, x, ids, ids, block=1024, key_block=2048, interpret=True
  )
  assert attention.fit_blocks(576, 1024, 2048) == (640, 640)
  kernel = str(jax.make_jaxpr(attend)(array))
  assert "grid=(1, 1, 1)" in kernel
  assert "[1,640,64]" in kernel


@pytest.fixture(scope="module")
def packs():
  """Segment ids of a step of each mix."""
  cases = attention.CASES.items()
  return {name: attention.plan(case, 2000, 1) for name, case in cases}


def test_each_mix_executes_at_most_half_more_than_it_needs(packs):
  for name, ids in packs.items():
    found = attention.figures(ids, attention.CASES[name])
    assert 1 < found["executed_over_needed"] <= 1.5
    assert found["executed_over_needed"] <= found["stock"]
    assert found["fill"] > 0.9
  long = attention.OTHERS["text_to_image_in_long_packs"]
  found = attention.figures(attention.plan(long, 2000, 1), long)
  assert found["stock"] > 50
  assert found["executed_over_needed"] > 5


def test_the_mixes_hold_what_they_are_called_after(packs):
  lengths = {
    name: np.concatenate([np.bincount(pack)[1:] for pack in ids])
    for name, ids in packs.items()
  }
  assert set(lengths["text_to_image"]) == {560, 567, 576}
  assert packs["text_to_image"].max() == 1  # an image each
  clips = lengths["video"]
  assert 5 * 560 <= clips.min() < clips.max() == 25 * 576
  images = lengths["joint"] <= 576
  assert images.mean() == pytest.approx(0.6, abs=0.05)


@pytest.mark.slow
def test_the_suite_tells_all_mixes_and_the_times_of_three(tmp_path):
  path = tmp_path / "figures.json"
  flags = ("--suite=attention", "--rounds=1", f"--json={path}")
  runs.run_job("bench", *flags)
  found = json.loads(path.read_text())
  for name in attention.CASES:
    assert found[name]["ratio"] > 0
    assert found[name]["gradients_ratio"] > 0
  assert found["text_to_image"]["timed_packs"] == [8, 576]
  assert found["joint"]["timed_packs"] == [1, 4608]
  found.pop("text_to_image_in_long_packs")
  for name in {*attention.CASES, *attention.OTHERS} & set(found):
    assert found[name]["executed_over_needed"] <= 1.5
