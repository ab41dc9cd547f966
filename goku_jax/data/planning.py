"""Which samples share a pack, and which packs a step.

The plan of all steps is a function of (sizes, groups, shares, capacity,
num_packs, lookahead, seed) alone. Samples come in epochs, each a random order
of all of them; an epoch is cut into windows of `lookahead` samples (the last
one is shorter: no window spans two epochs); each window becomes packs, in a
random order; step `s` takes packs [s num_packs, (s + 1) num_packs) of the
stream. So an epoch holds every sample exactly once, whoever reads which pack.

Groups (images and clips, or sources) have epochs of their own, and each window
takes of every group its share. Windows are then all of one length, and span the
epochs of a group.

Which packs a step has never depends on who computes it; which rank has which of
them may. A pack with a clip of 90,000 tokens costs several packs of images, so
ranks wait for each other unless each takes several packs, dear and cheap ones:
with `cost_fn` they are dealt dearest first. Four a rank are enough, see
`bench --suite=packing`. Steps of packs of alike cost would balance as well, but
then one step has clips and the next one images.
"""

import bisect
import collections
import math
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from goku_jax.data import hashing, packing
from goku_jax.typing import UserError

_EPOCH, _WINDOW = range(2)  # what a random order is for; of group g: + 2 g


class Planner:
  """The packs of every step; safe to ask from several threads.

  Args:
    sizes: tokens and text tokens of each sample, int [n, 2].
    capacity: of a pack.
    num_packs: packs a step, over all ranks.
    lookahead: samples that are packed together.
    seed: of the orders.
    groups: number of each sample's group, int [n]. Without, an epoch holds
      every sample once.
    shares: of each group in the samples of a window; they need not sum to 1,
      and a group of share 0 is left out. Over any windows from the first one,
      counts differ from the shares by less than one sample.
    names: of the groups, for messages.
    ranks: data-parallel ranks; each takes num_packs / ranks packs in a row.
    cost_fn: cost of a pack by token counts and text counts of its samples, as
      `costs.pack_flops`; the same on every host. Each rank then takes packs of
      alike sum, its dearest one first, so that micro-batches are alike too.

  Raises:
    UserError: a sample fits no pack, a group is left without samples, or
      something does not divide.
  """

  def __init__(
    self,
    sizes: np.ndarray,
    *,
    capacity: packing.Capacity,
    num_packs: int,
    lookahead: int,
    seed: int,
    groups: np.ndarray | None = None,
    shares: Sequence[int | float] = (),
    names: Sequence[str] = (),
    ranks: int = 1,
    cost_fn: Callable[[list[int], list[int]], float] | None = None,
  ):
    self.sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    self.capacity = packing.Capacity(*capacity)
    self.num_packs, self.lookahead, self.seed = num_packs, lookahead, seed
    self.ranks, self.cost_fn = ranks, cost_fn
    for name in ("num_packs", "lookahead", "ranks"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} gives no batch: set 1+")
    if num_packs % ranks:
      raise UserError(
        f"num_packs={num_packs} does not divide among {ranks} data-parallel "
        "ranks: set a multiple, best four times their number or more"
      )
    if not len(self.sizes):
      raise UserError("0 batches: the source has no samples")
    _check_fits(self.sizes, self.capacity)
    if (groups is None) != (not len(shares)):
      raise ValueError("groups and shares go together")
    self._members, self._shares = [np.arange(len(self.sizes))], None
    if groups is not None:
      self._members = [np.flatnonzero(groups == g) for g in range(len(shares))]
      self._shares = _read_shares(shares, names, self._members, lookahead)
      if sum(map(len, self._members)) != len(self.sizes):
        raise ValueError(f"samples of groups beyond {len(shares)} shares")
    self._ends = []  # packs in windows 0..w together
    self._orders = {}  # of each group, the latest epoch and its order
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
    packs = packs[first - start : last - start]
    if self.cost_fn and 1 < self.ranks < self.num_packs:
      costs = [self._cost(pack) for pack in packs]
      packs = [packs[i] for i in deal_ranks(costs, self.ranks)]
    return tuple(packs)

  def seen(self, step: int) -> np.ndarray:
    """How often each sample was drawn in the steps before, int [n]."""
    self.step(step)  # finds its window
    first = step * self.num_packs
    counts = np.zeros(len(self.sizes), np.int64)
    with self._lock:
      w = bisect.bisect_right(self._ends, first)
      start = self._ends[w - 1] if w else 0
      for group, (begin, _) in enumerate(self._spans(w)):
        members = self._members[group]
        epochs, rest = divmod(begin, len(members)) if begin else (0, 0)
        counts[members] += epochs
        if rest:
          counts[members[self._order(group, epochs)[:rest]]] += 1
      for pack in self._window(w)[: first - start]:
        counts[[i for i, _ in pack]] += 1
    return counts

  def _cost(self, pack) -> float:
    tokens, texts = self.sizes[[i for i, _ in pack]].T.tolist()
    return self.cost_fn(tokens, texts)

  def _window(self, window: int):
    """The packs of a window, a function of the seed and its number."""
    if window not in self._recent:
      parts = [self._read(g, *s) for g, s in enumerate(self._spans(window))]
      index, visits = np.concatenate(parts, axis=1)
      dealt = packing.deal(self.sizes[index], self.capacity)
      names = list(zip(index.tolist(), visits.tolist(), strict=True))
      self._recent[window] = [
        tuple(names[i] for i in dealt[p])
        for p in hashing.permutation(len(dealt), self.seed, _WINDOW, window)
      ]
      if len(self._recent) > 8:
        self._recent.popitem(last=False)
    return self._recent[window]

  def _spans(self, window: int):
    """From where to where a window reads the stream of each group."""
    if self._shares is not None:
      ends = (window * self.lookahead, (window + 1) * self.lookahead)
      return zip(*(_apportion(end, self._shares) for end in ends), strict=True)
    n = len(self.sizes)
    epoch, k = divmod(window, -(-n // self.lookahead))
    start = epoch * n + k * self.lookahead
    return [(start, min(start + self.lookahead, (epoch + 1) * n))]

  def _read(self, group: int, start: int, stop: int) -> np.ndarray:
    """Sample indices and visits of a part of a group's stream, int [2, n]."""
    members = self._members[group]
    if start == stop:  # a small share, or none
      return np.zeros((2, 0), np.int64)
    visits, rows = np.divmod(np.arange(start, stop), len(members))
    index = [
      members[self._order(group, int(visit))[rows[visits == visit]]]
      for visit in np.unique(visits)
    ]
    return np.stack([np.concatenate(index), visits])

  def _order(self, group: int, epoch: int) -> np.ndarray:
    if self._orders.get(group, (-1,))[0] != epoch:
      words = (self.seed, _EPOCH + 2 * group, epoch)
      order = hashing.permutation(len(self._members[group]), *words)
      self._orders[group] = (epoch, order)
    return self._orders[group][1]


def deal_ranks(costs: Sequence[int | float], ranks: int) -> list[int]:
  """Which pack stands where, so that ranks with equally many cost the same.

  Packs go by cost in rounds of one a rank; the dearest of a round goes to the
  rank that has least so far. Rank r has places [r n / ranks, (r + 1) n / ranks)
  of what is returned, n packs in all, and its packs of each round in turn.
  """
  costs = np.asarray(costs, float)
  rounds = np.argsort(-costs, kind="stable").reshape(-1, ranks)
  load = np.zeros(ranks)
  places = np.empty_like(rounds)
  for round_, packs in enumerate(rounds):
    takers = np.argsort(load, kind="stable")
    places[round_, takers] = packs
    load[takers] += costs[packs]
  return places.T.ravel().tolist()


def _apportion(total: int, shares: list[Fraction]) -> list[int]:
  """Whole numbers that sum to `total`, each within one of its share of it."""
  exact = [total * share for share in shares]
  counts = [math.floor(x) for x in exact]
  largest = sorted(range(len(counts)), key=lambda g: counts[g] - exact[g])
  for g in largest[: total - sum(counts)]:
    counts[g] += 1
  return counts


def _read_shares(shares, names, members, lookahead) -> list[Fraction]:
  """Shares that sum to 1, each of which gives every window a sample."""
  names = names or [f"group {g}" for g in range(len(shares))]
  for name, share, found in zip(names, shares, members, strict=True):
    if not 0 <= share < math.inf:
      raise UserError(f"{name} has the share {share}: set 0 or more")
    if share and not len(found):
      raise UserError(f"0 batches: {name} has the share {share} and no samples")
  exact = [Fraction(str(share)) for share in shares]  # 0.6 is 3/5
  if not any(exact):
    raise UserError(f"0 batches: every share of {', '.join(names)} is 0")
  exact = [share / sum(exact) for share in exact]
  least, name = min(pair for pair in zip(exact, names, strict=True) if pair[0])
  if lookahead * least < 1:
    raise UserError(
      f"lookahead={lookahead} leaves windows without {name}: set "
      f"{math.ceil(1 / least)} or more"
    )
  return exact


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
