"""Packs of a realistic mix: how full, how even, how fast; and what else is.

The mix: 60 percent images of 20 shapes, else clips of 17 to 97 frames of the
three sizes of Goku's cascade, each in five aspect ratios from landscape to
portrait; captions of 20 to 300 tokens. The autoencoder has 8x8x4 and the patch
1x2x2, so a token is 16 x 16 pixels of the first frame or of four more frames:
the longest clip has 25 x 45 x 80 = 90,000.

A pack has 98,304 tokens: that clip and, beside it, the images that a pack has
on average, a tenth of its tokens. 64 ranks take four packs each a step. A
pack's cost is the FLOPs that Goku 8B executes with attention in blocks of 512.
"""

import collections
import functools
import math
import time

import numpy as np

from goku_jax import costs
from goku_jax.data import packing, planning

CASCADE = ((288, 512), (480, 864), (720, 1280))
MEGAPIXEL = (768, 1360)  # of images alone
FRAMES = range(17, 98, 4)
IMAGE_SHARE = 0.6
NUM_SAMPLES = 20_000
CAPACITY = packing.Capacity(tokens=98_304, text=8_192, segments=64)
LOOKAHEAD = 8_192
RANKS, PACKS_A_RANK = 64, 4
WIDTHS = dict(width=3072, depth=40, patch_width=64, text_width=2048)
cost_fn = functools.partial(costs.pack_flops, block=costs.BLOCK, **WIDTHS)


def shapes(height: int, width: int) -> list[tuple[int, int]]:
  """Multiples of 16 with no more pixels, from this ratio to its inverse."""
  pixels, found = height * width, []
  for power in (1, 0.5, 0, -0.5, -1):
    wide = round((pixels * (width / height) ** power) ** 0.5 / 16)
    found.append((16 * (pixels // (256 * wide)), 16 * wide))
  return found


def make_mix(n: int = NUM_SAMPLES, seed: int = 0) -> np.ndarray:
  """Latent frames, height and width in tokens, and text tokens, int [n, 4]."""
  rng = np.random.default_rng(seed)
  clips = [s for size in CASCADE for s in shapes(*size)]
  sides = np.array(clips + shapes(*MEGAPIXEL)) // 16
  image = rng.random(n) < IMAGE_SHARE
  frames = (rng.choice(FRAMES, n) - 1) // 4 + 1
  shape = rng.integers(np.where(image, len(sides), len(clips)))
  text = rng.integers(20, 301, n)
  frames = np.where(image, 1, frames)
  return np.stack([frames, *sides[shape].T, text], axis=1)


def compare(rounds: int) -> dict:
  """Fill, imbalance and speed of planning, of our packs and of other ways.

  Fill is tokens over the capacity of the batches that hold them. Imbalance is
  the cost of the dearest rank over the mean of the ranks, the mean over steps.
  Speed is samples over the least seconds of the call that forms the batches.
  """
  mix = make_mix()
  sizes = np.stack([mix[:, :3].prod(1), mix[:, 3]], axis=1)
  packs, speed = timed(rounds, plan, sizes, mix[:, 0] > 1)
  ours = {
    "fill": fill(sizes, packs),
    **balance(sizes, packs, PACKS_A_RANK),
    **variety(mix, packs, RANKS * PACKS_A_RANK),
  }
  rng = np.random.default_rng(0)
  shuffled = [packs[i] for i in rng.permutation(len(packs))]
  by_cost = sorted(packs, key=lambda pack: -cost(sizes, pack))
  window = sizes[:LOOKAHEAD]
  return {
    "fill": ours["fill"],
    "imbalance": ours["imbalance"],
    **speed,
    **array_speed(rounds, mix, packs[:4]),
    "four_packs_a_rank_dearest_first": ours,
    "one_random_pack_a_rank": balance(sizes, shuffled, 1)
    | variety(mix, shuffled, RANKS),
    "one_pack_a_rank_of_alike_cost": balance(sizes, by_cost, 1)
    | variety(mix, by_cost, RANKS),
    "first_fit_decreasing": {"fill": fill(window, first_fit(window, CAPACITY))},
    "padded_to_the_longest": padding(rounds, sizes),
    "buckets_of_one_shape": buckets(rounds, mix, sizes),
  }


def timed(rounds: int, form, *arguments) -> tuple[list[list[int]], dict]:
  """The batches that a way forms, and how fast it does."""
  seconds, batches = [], []
  for _ in range(rounds):
    start = time.perf_counter()
    batches = form(*arguments)
    seconds.append(time.perf_counter() - start)
  speed = sum(map(len, batches)) / min(seconds)
  return batches, {"planned_samples_per_second": speed}


def plan(sizes, is_clip, num_steps: int = 8) -> list[list[int]]:
  """The packs of some steps, in order."""
  planner = planning.Planner(
    sizes,
    capacity=CAPACITY,
    num_packs=RANKS * PACKS_A_RANK,
    lookahead=LOOKAHEAD,
    seed=0,
    groups=is_clip,
    shares=(IMAGE_SHARE, 1 - IMAGE_SHARE),
    names=("images", "clips"),
    ranks=RANKS,
    cost_fn=cost_fn,
  )
  steps = map(planner.step, range(num_steps))
  return [[i for i, _ in pack] for step in steps for pack in step]


def cost(sizes, pack) -> float:
  """FLOPs of a pack of samples, by their place in `sizes`."""
  return cost_fn(*sizes[pack].T.tolist())


def fill(sizes, packs) -> float:
  """The share of token places that hold a token."""
  used = sum(int(sizes[pack, 0].sum()) for pack in packs)
  return used / (len(packs) * CAPACITY.tokens)


def balance(sizes, packs, each: int) -> dict:
  """Imbalance where ranks take `each` packs in a row.

  It is told for ranks that wait for each other once a step, and for those that
  wait after every pack, as they do with a micro-batch of each and weights that
  are gathered.
  """
  count = len(packs) // (RANKS * each) * RANKS * each
  load = np.array([cost(sizes, pack) for pack in packs[:count]])
  load = load.reshape(-1, RANKS, each)
  mean = load.sum(2).mean(1)
  step = load.sum(2).max(1) / mean
  found = {"imbalance": step.mean(), "imbalance_of_the_worst_step": step.max()}
  if each > 1:
    found["imbalance_waiting_after_each_pack"] = np.mean(
      load.max(1).sum(1) / mean
    )
  return found


def variety(mix, packs, num_packs: int) -> dict:
  """How the share of images differs between steps of `num_packs` packs."""
  samples, tokens = [], []
  for k in range(len(packs) // num_packs):
    step = mix[np.concatenate(packs[k * num_packs : (k + 1) * num_packs])]
    image, count = step[:, 0] == 1, step[:, :3].prod(1)
    samples.append(image.mean())
    tokens.append(count[image].sum() / count.sum())
  return {
    "images_of_samples_least_and_most": _span(samples),
    "images_of_tokens_least_and_most": _span(tokens),
  }


def _span(values):
  return float(min(values)), float(max(values))


def first_fit(sizes, capacity) -> list[list[int]]:
  """Longest first, each to the first pack with room for it."""
  empty = np.array([capacity.tokens, capacity.text - 1, capacity.segments])
  room = np.tile(empty, (len(sizes), 1))  # a pack each is always enough
  packs = []
  for i in np.argsort(-sizes[:, 0], kind="stable").tolist():
    need = np.array([*sizes[i], 1])
    k = int((room[: len(packs) + 1] >= need).all(1).argmax())
    if k == len(packs):
      packs.append([])
    packs[k].append(i)
    room[k] -= need
  return packs


def padding(rounds: int, sizes) -> dict:
  """Each sample a row as long as the longest: all rows then cost the same."""
  _, speed = timed(rounds, pad, sizes)
  share = sizes[:, 0].mean() / sizes[:, 0].max()
  return {"fill": share, "imbalance": 1.0, **speed}


def pad(sizes) -> list[list[int]]:
  """Batches in random order, as many such rows as a pack has room for."""
  order = np.random.default_rng(0).permutation(len(sizes))
  each = CAPACITY.tokens // int(sizes[:, 0].max())
  return order[: len(order) // each * each].reshape(-1, each).tolist()


def buckets(rounds: int, mix, sizes) -> dict:
  """Batches of one shape, one a rank."""
  batches, speed = timed(rounds, bucket, mix)
  return {
    "fill": fill(sizes, batches),
    **balance(sizes, batches, 1),
    **variety(mix, batches, RANKS),
    **speed,
  }


def bucket(mix) -> list[list[int]]:
  """Batches of one shape, as many samples as a pack has room for.

  In random order; what does not fill a batch is left out.
  """
  rng = np.random.default_rng(0)
  batches, filling = [], collections.defaultdict(list)
  for i in rng.permutation(len(mix)).tolist():
    shape = tuple(mix[i, :3].tolist())
    filling[shape].append(i)
    if len(filling[shape]) == CAPACITY.tokens // math.prod(shape):
      batches.append(filling.pop(shape))
  return [batches[i] for i in rng.permutation(len(batches))]


def array_speed(rounds: int, mix, packs) -> dict:
  """Samples and bytes a second that become arrays of packs."""
  samples = [[_sample(mix, i) for i in pack] for pack in packs]
  seconds, batch = [], {}
  for _ in range(rounds):
    start = time.perf_counter()
    for members in samples:
      batch = packing.pack(members, CAPACITY, channels=16)
    seconds.append(time.perf_counter() - start)
  size = len(packs) * sum(array.nbytes for array in batch.values())
  return {
    "packed_samples_per_second": sum(map(len, packs)) / min(seconds),
    "packed_gb_per_second": size / min(seconds) / 1e9,
  }


def _sample(mix, index: int) -> dict:
  frames, height, width, text = mix[index].tolist()
  latents = np.full((frames, 2 * height, 2 * width, 16), index, np.float32)
  ids = np.full(text, 3, np.int32)
  return {
    "mean": latents,
    "logvar": latents,
    "text_ids": ids,
    "text_embeddings": np.zeros((text, 0), np.float16),
    "index": index,
    "visit": 0,
    "class": 0,
  }
