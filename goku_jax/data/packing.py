"""Patch n' Pack: samples dealt to packs, and a pack's arrays.

Letters: B packs, L tokens, P numbers a token, S text tokens, G segments.
"""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from goku_jax.data import patches, schema, tokenize


class Capacity(NamedTuple):
  """What one pack holds."""

  tokens: int
  text: int  # with the one token of the empty caption
  segments: int


def deal(sizes: Int[np.ndarray, "n 2"], capacity: Capacity) -> list[list[int]]:
  """Packs of samples with `sizes` (tokens, text tokens), by position.

  The fewest packs that could hold everything are opened at once, and samples
  go, longest first, to the pack with most room for tokens (Graham 1969). Next
  to first-fit decreasing this mixes clips and images in each pack, so a pack
  runs out of tokens before it runs out of text or segments, and packs are of
  even length; measured on the digits and on a mix of 20 image shapes with clips
  of 17 to 97 frames, it needs as few packs as first or best fit, or fewer.
  """
  order = np.lexsort((-sizes[:, 1], -sizes[:, 0]))
  sorted_sizes = sizes[order]
  # Text of the least talkative sample still to come, for each place in order.
  least_text = np.minimum.accumulate(sorted_sizes[::-1, 1])[::-1].tolist()
  text_room = capacity.text - 1
  totals = zip((*sizes.sum(0), len(sizes)), _usable(capacity), strict=True)
  count = max(-(-int(total) // room) for total, room in totals)
  packs = [[] for _ in range(count)]
  text_left = [text_room] * count
  heap = [(-capacity.tokens, k) for k in range(count)]  # most room first
  for i, (tokens, text), least in zip(
    order.tolist(), sorted_sizes.tolist(), least_text, strict=True
  ):
    aside = []
    while heap and -heap[0][0] >= tokens and text_left[heap[0][1]] < text:
      room = heapq.heappop(heap)
      if text_left[room[1]] >= least:  # else nobody to come fits there
        aside.append(room)
    if not heap or -heap[0][0] < tokens:
      heapq.heappush(heap, (-capacity.tokens, len(packs)))
      packs.append([])
      text_left.append(text_room)
    filled, k = heap[0]
    packs[k].append(i)
    text_left[k] -= text
    if len(packs[k]) < capacity.segments:
      heapq.heapreplace(heap, (filled + tokens, k))
    else:
      heapq.heappop(heap)
    for room in aside:
      heapq.heappush(heap, room)
  return packs


def _usable(capacity):
  return capacity.tokens, capacity.text - 1, capacity.segments


def pack(
  samples: list[dict],
  capacity: Capacity,
  *,
  patch_size=(1, 2, 2),
  channels: int,
  null_text: np.ndarray = schema.NO_TEXT,
  conditioned: bool = False,
) -> dict[str, np.ndarray]:
  """One pack (B = 1) of samples, the arrays of `schema.FLOW`.

  A sample holds `mean` and `logvar` [T, H, W, C], `text_ids`,
  `text_embeddings` [s, E], `class`, `index`, `visit`, in training
  `quantile`, and perhaps `condition` [T, H, W, C + 1].

  Args:
    samples: perhaps none.
    capacity: of the pack.
    patch_size: of a token.
    channels: of the latents, C.
    null_text: embedding of the empty caption [1, E].
    conditioned: whether the model takes conditions.
  """
  volume = int(np.prod(patch_size))
  L, S, G = capacity
  batch = schema.empty_packs(
    B=1,
    L=L,
    P=volume * channels,
    S=S,
    G=G,
    E=null_text.shape[1],
    K=volume * (channels + 1) * conditioned,
  )
  row = {name.rsplit("_", 1)[0]: array[0] for name, array in batch.items()}
  row["text_ids"][0] = tokenize.EOS
  row["text_embeddings"][0] = null_text[0]
  row["text_segment_ids"][0] = schema.EMPTY_CAPTION
  token, text = 0, 1
  for g, sample in enumerate(samples):
    tokens = patches.patchify(sample["mean"], patch_size)
    to_token, to_text = token + len(tokens), text + len(sample["text_ids"])
    if to_token > L or to_text > S or g >= G:
      raise ValueError(f"{len(samples)} samples do not fit a pack {capacity}")
    here, there = slice(token, to_token), slice(text, to_text)
    row["tokens"][here] = tokens
    row["tokens_logvar"][here] = patches.patchify(sample["logvar"], patch_size)
    if "condition" in sample:
      row["condition"][here] = patches.patchify(sample["condition"], patch_size)
    row["segment_ids"][here] = g + 1
    grid = patches.token_grid(sample["mean"].shape, patch_size)
    row["positions"][here] = patches.grid_positions(grid)
    row["text_ids"][there] = sample["text_ids"]
    row["text_embeddings"][there] = sample["text_embeddings"]
    row["text_segment_ids"][there] = g + 1
    row["text_positions"][there] = np.arange(to_text - text)
    row["sample_index"][g] = sample["index"]
    row["visit"][g] = sample["visit"]
    row["quantile"][g] = sample.get("quantile", 0)
    row["class"][g] = sample["class"]
    token, text = to_token, to_text
  return batch


def unpack(batch: dict, *, patch_size=(1, 2, 2)) -> list[list[dict]]:
  """The samples of each pack: the inverse of `pack`."""
  return [
    [
      _segment(batch, b, g, patch_size)
      for g in np.flatnonzero(batch["sample_index_BG"][b] >= 0).tolist()
    ]
    for b in range(len(batch["tokens_BLP"]))
  ]


def _segment(batch, b: int, g: int, patch_size) -> dict:
  tokens = batch["segment_ids_BL"][b] == g + 1
  text = batch["text_segment_ids_BS"][b] == g + 1
  grid = batch["positions_BL3"][b, tokens].max(0) + 1
  latents = lambda name: patches.unpatchify(
    batch[name][b, tokens], grid, patch_size
  )
  condition = {}
  if batch["condition_BLK"].shape[-1]:
    condition["condition"] = latents("condition_BLK")
  return {
    **condition,
    "mean": latents("tokens_BLP"),
    "logvar": latents("tokens_logvar_BLP"),
    "text_ids": batch["text_ids_BS"][b, text],
    "text_embeddings": batch["text_embeddings_BSE"][b, text],
    "class": int(batch["class_BG"][b, g]),
    "index": int(batch["sample_index_BG"][b, g]),
    "visit": int(batch["visit_BG"][b, g]),
    "quantile": float(batch["quantile_BG"][b, g]),
  }
