"""Batches of every step, read ahead by Grain, each host its own share.

Which samples a step holds is a function of the seed and the step; a host reads
the rows that its devices need. So the only position of the data is the step,
and `next` on what these functions return gives host-local batches (`schema.py`)
of steps first_step, first_step + 1, ...

`rows_of(count)` names the rows of this host among `count`: by default all.
"""

import functools

import grain
import numpy as np

from goku_jax.data import hashing, packing, planning, tokenize
from goku_jax.typing import UserError

KINDS = ("video", "image")
_STRATA, _WITHIN = -1, -2  # what a random number is for
TEXT = ("text_ids", "text_embeddings")


def flow_batches(
  source,
  planner: planning.Planner,
  *,
  patch_size,
  first_step: int,
  num_steps: int,
  given=None,
  rows_of=np.arange,
  threads: int = 2,
):
  """Iterator of packed batches of a source of latents (`sources.py`).

  With `given`, a `given.Given`, samples have conditions.
  """
  if len(source) != len(planner.sizes):
    raise ValueError(
      f"the plan is of {len(planner.sizes)} samples, the source has "
      f"{len(source)}"
    )
  own = rows_of(planner.num_packs).tolist()

  def read_pack(members, quantiles):
    samples = []
    for index, visit in members:
      sample = source.read(index, visit)
      if sample is None:  # it cannot be read, and is left out
        continue
      length = int(planner.sizes[index, 1])
      text = {k: tokenize.cut(sample[k], length) for k in TEXT}
      told = {"visit": visit, "quantile": quantiles[index, visit]}
      if given:
        told["condition"] = given.draw(sample, visit)
      samples.append({**sample, **text, **told})
    return packing.pack(
      samples,
      planner.capacity,
      patch_size=patch_size,
      channels=source.channels,
      null_text=source.null_text,
      conditioned=given is not None,
    )

  def read_step(step):
    planned = planner.step(step)
    quantiles = draw_quantiles(planned, planner.seed, step)
    packs = [read_pack(planned[row], quantiles) for row in own]
    return {name: np.concatenate([p[name] for p in packs]) for name in packs[0]}

  return _read_ahead(read_step, first_step, num_steps, threads)


def draw_quantiles(packs, seed: int, step: int) -> dict:
  """Numbers in [0, 1) of the samples of a step, (index, visit) -> number.

  Of n samples each has one of n equal parts, at random, and a place in it:
  whatever the time's density, a step covers it evenly, and however its samples
  are dealt to packs, devices and micro-batches (as CogVideoX samples times,
  arXiv:2408.06072, but over samples where that does so over ranks).
  """
  members = sorted(member for pack in packs for member in pack)
  part = hashing.permutation(len(members), seed, _STRATA, step)
  index, visit = np.array(members, np.int64).reshape(-1, 2).T
  u = (part + hashing.uniform(seed, _WITHIN, index, visit)) / len(members)
  return dict(zip(members, u.tolist(), strict=True))


def vae_batches(
  raw,
  *,
  num_clips: int,
  num_images: int,
  seed: int,
  first_step: int,
  num_steps: int,
  rows_of=np.arange,
  threads: int = 2,
):
  """Iterator of batches of clips and images of a raw source.

  Clips and images come each in epochs of their own, every one once an epoch.
  """
  counts = {"video": num_clips, "image": num_images}
  frames = raw.sizes()[:, 0]
  members = {
    "video": np.flatnonzero(frames > 1),
    "image": np.flatnonzero(frames == 1),
  }
  for kind, count in counts.items():
    if count and not len(members[kind]):
      raise UserError(
        f"0 batches: {count} of kind {kind} a step and the source has none"
      )
  if not any(counts.values()):
    raise UserError("0 batches: num_clips and num_images are both 0")
  own = {kind: rows_of(count) for kind, count in counts.items()}

  @functools.lru_cache(maxsize=4)
  def order(kind, epoch):
    n = len(members[kind])
    return members[kind][hashing.permutation(n, seed, KINDS.index(kind), epoch)]

  def read_step(step):
    batch = {}
    for kind, count in counts.items():
      places = step * count + own[kind]
      visits, rows = divmod(places, max(1, len(members[kind])))
      index = [
        order(kind, int(visit))[row]
        for visit, row in zip(visits, rows, strict=True)
      ]
      videos = [raw[int(i)]["video"] for i in index]
      batch[f"{kind}_BTHWC"] = np.array(videos, np.uint8)
      batch[f"{kind}_index_B"] = np.array(index, np.int32)
      batch[f"{kind}_visit_B"] = visits.astype(np.int32)
    for kind, count in counts.items():
      if not count:  # none, but of the shape that a step expects
        other = batch[f"{KINDS[1 - KINDS.index(kind)]}_BTHWC"]
        batch[f"{kind}_BTHWC"] = other[:0, :1]
    return batch

  return _read_ahead(read_step, first_step, num_steps, threads)


def _read_ahead(read_step, first_step, num_steps, threads):
  if num_steps < 1:
    raise UserError(
      f"0 batches: num_steps={num_steps} from first_step={first_step}"
    )
  steps = grain.MapDataset.range(first_step, first_step + num_steps)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  return iter(steps.map(read_step).to_iter_dataset(options))
