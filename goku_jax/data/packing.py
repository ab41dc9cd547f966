"""Patch n' Pack: which samples share a pack, and a pack's arrays.

The plan of all steps is a function of (sizes, capacity, num_packs, lookahead,
seed) alone. Samples come in epochs, each a random order of all of them; an
epoch is cut into windows of `lookahead` samples (the last one is shorter: no
window spans two epochs); each window becomes packs, in a random order; step `s`
takes packs [s num_packs, (s + 1) num_packs) of the stream. So an epoch holds
every sample exactly once, whoever reads which pack.

Letters: B packs, L tokens, P numbers a token, S text tokens, G segments.
"""

import bisect
import collections
import heapq
import threading
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from goku_jax.data import hashing, patches, schema, tokenize
from goku_jax.typing import UserError

_EPOCH, _WINDOW = range(2)  # what a random order is for


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


class Planner:
  """The packs of every step; safe to ask from several threads.

  Args:
    sizes: tokens and text tokens of each sample, int [n, 2].
    capacity: of a pack.
    num_packs: packs a step, over all hosts.
    lookahead: samples that are packed together.
    seed: of the orders.
  """

  def __init__(
    self,
    sizes: np.ndarray,
    *,
    capacity: Capacity,
    num_packs: int,
    lookahead: int,
    seed: int,
  ):
    self.sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    self.capacity = Capacity(*capacity)
    self.num_packs, self.lookahead, self.seed = num_packs, lookahead, seed
    for name in ("num_packs", "lookahead"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} gives no batch: set 1+")
    if not len(self.sizes):
      raise UserError("0 batches: the source has no samples")
    _check_fits(self.sizes, self.capacity)
    self._windows_per_epoch = -(-len(self.sizes) // lookahead)
    self._ends = []  # packs in windows 0..w together
    self._order = (-1, None)  # the latest epoch and its order
    self._recent = collections.OrderedDict()  # windows that next steps share
    self._lock = threading.Lock()

  def step(self, step: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The packs of a step: for each, the (sample index, visit) of its segments.

    A step far ahead counts all windows before it, once.
    """
    first, last = step * self.num_packs, (step + 1) * self.num_packs
    packs = []
    with self._lock:
      while not self._ends or self._ends[-1] < last:
        before = self._ends[-1] if self._ends else 0
        self._ends.append(before + len(self._window(len(self._ends))))
      w = bisect.bisect_right(self._ends, first)
      start = self._ends[w - 1] if w else 0
      while start + len(packs) < last:
        packs += self._window(w)
        w += 1
    return tuple(packs[first - start : last - start])

  def _window(self, window: int):
    """The packs of a window, a function of the seed and its number."""
    if window not in self._recent:
      epoch, k = divmod(window, self._windows_per_epoch)
      members = self._epoch_order(epoch)[k * self.lookahead :]
      members = members[: self.lookahead]
      dealt = deal(self.sizes[members], self.capacity)
      names = members.tolist()
      self._recent[window] = [
        tuple((names[i], epoch) for i in dealt[p])
        for p in hashing.permutation(len(dealt), self.seed, _WINDOW, window)
      ]
      if len(self._recent) > 8:
        self._recent.popitem(last=False)
    return self._recent[window]

  def _epoch_order(self, epoch: int) -> np.ndarray:
    if self._order[0] != epoch:
      order = hashing.permutation(len(self.sizes), self.seed, _EPOCH, epoch)
      self._order = (epoch, order)
    return self._order[1]


def _check_fits(sizes, capacity):
  """Refuses sizes that no pack can hold, naming the first one."""
  if capacity.segments < 1:
    raise UserError(f"segments={capacity.segments} gives no batch: set 1+")
  nothing = np.flatnonzero((sizes < 1).any(axis=1))
  if len(nothing):
    raise UserError(
      f"sample {int(nothing[0])} has no tokens or no text tokens "
      f"({len(nothing)} such samples): leave them out"
    )
  for column, (name, extra) in enumerate((("tokens", 0), ("text", 1))):
    need = sizes[:, column] + extra
    room = getattr(capacity, name)
    too_large = np.flatnonzero(need > room)
    if len(too_large):
      i = int(too_large[0])
      raise UserError(
        f"sample {i} has {sizes[i, 0]} tokens and {sizes[i, 1]} text tokens "
        f"and never fits a pack ({len(too_large)} such samples): set the "
        f"pack's {name} from {room} to {int(need.max())} or more"
      )


def pack(
  samples: list[dict], capacity: Capacity, *, patch_size=(1, 2, 2)
) -> dict[str, np.ndarray]:
  """One pack (B = 1) of samples, the arrays of `schema.FLOW`.

  A sample holds `mean` and `logvar` [T, H, W, C], `text_ids`, `class`, `index`
  and `visit`.
  """
  width = int(np.prod(patch_size)) * samples[0]["mean"].shape[-1]
  L, S, G = capacity
  batch = schema.empty_packs(B=1, L=L, P=width, S=S, G=G)
  row = {name.rsplit("_", 1)[0]: array[0] for name, array in batch.items()}
  row["text_ids"][0] = tokenize.EOS
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
    row["segment_ids"][here] = g + 1
    grid = patches.token_grid(sample["mean"].shape, patch_size)
    row["positions"][here] = patches.grid_positions(grid)
    row["text_ids"][there] = sample["text_ids"]
    row["text_segment_ids"][there] = g + 1
    row["text_positions"][there] = np.arange(to_text - text)
    row["sample_index"][g] = sample["index"]
    row["visit"][g] = sample["visit"]
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
  return {
    "mean": latents("tokens_BLP"),
    "logvar": latents("tokens_logvar_BLP"),
    "text_ids": batch["text_ids_BS"][b, text],
    "class": int(batch["class_BG"][b, g]),
    "index": int(batch["sample_index_BG"][b, g]),
    "visit": int(batch["visit_BG"][b, g]),
  }
