"""The plan: each sample once an epoch, whoever asks; shares; even ranks."""

import collections
import itertools

import numpy as np
import pytest

from goku_jax import costs
from goku_jax.data import digits, planning
from goku_jax.data.packing import Capacity
from goku_jax.data.planning import Planner
from goku_jax.typing import UserError

DIGITS = Capacity(tokens=320, text=256, segments=8)


def digit_sizes(n=2000):
  size = digits.Digits(num_samples=n).sizes()
  return np.stack([np.where(size[:, 0] > 1, 80, 16), size[:, 3]], axis=1)


def film_sizes(n=2000):
  """Images and clips of many shapes, captions of 20 to 256 tokens."""
  rng = np.random.default_rng(0)
  image = rng.choice([576, 768, 1024, 1620, 3600], n)
  clip = rng.integers(5, 26, n) * rng.choice([576, 1620, 3600], n)
  tokens = np.where(rng.random(n) < 0.6, image, clip)
  return np.stack([tokens, rng.integers(20, 257, n)], axis=1)


PLANS = [
  (digit_sizes(), DIGITS),
  (digit_sizes(), Capacity(320, 600, 20)),
  (film_sizes(), Capacity(98_304, 4096, 40)),
  (film_sizes(), Capacity(98_304, 600, 40)),  # text is what runs out
]


def make_planner(sizes, capacity=DIGITS, **kwargs):
  defaults = {"num_packs": 4, "lookahead": 512, "seed": 0}
  return Planner(sizes, capacity=capacity, **(defaults | kwargs))


@pytest.mark.parametrize(("sizes", "capacity"), PLANS)
@pytest.mark.parametrize("lookahead", [1, 100, 5000])
def test_every_sample_is_seen_once_an_epoch(sizes, capacity, lookahead):
  planner = make_planner(sizes, capacity, lookahead=lookahead)
  seen = collections.Counter()
  for step in itertools.count():
    for pack in planner.step(step):
      seen.update(pack)
      size = sizes[[i for i, _ in pack]]
      assert 1 <= len(pack) <= capacity.segments
      assert size[:, 0].sum() <= capacity.tokens
      assert size[:, 1].sum() < capacity.text  # one is the empty caption's
    if any(visit == 2 for _, visit in pack):
      break
  assert all(seen[i, visit] == 1 for i in range(len(sizes)) for visit in (0, 1))
  assert max(seen.values()) == 1


def fill_of(planner, num_steps=100):
  """The share of token places that hold a token."""
  packs = [pack for step in range(num_steps) for pack in planner.step(step)]
  tokens = sum(planner.sizes[i, 0] for pack in packs for i, _ in pack)
  return tokens / (len(packs) * planner.capacity.tokens)


@pytest.mark.parametrize("capacity", [DIGITS, Capacity(320, 600, 20)])
def test_packs_of_digits_are_full(capacity):
  fill = fill_of(make_planner(digit_sizes(), capacity))
  print(f"fill {fill:.4f}")
  assert fill >= 0.99


def test_packs_of_films_are_full():
  planner = make_planner(film_sizes(), Capacity(98_304, 8192, 64))
  fill = fill_of(planner)
  print(f"fill {fill:.4f}")
  assert fill >= 0.96


def test_a_step_does_not_depend_on_what_was_asked_before():
  straight = make_planner(digit_sizes())
  steps = [straight.step(s) for s in range(300)]
  resumed = make_planner(digit_sizes())
  for s in (299, 120, 121, 0, 298, 299, 7):
    assert resumed.step(s) == steps[s]
  assert make_planner(digit_sizes(), seed=1).step(0) != steps[0]


def test_a_plan_stays_what_it_was():
  sizes = np.stack([np.arange(10) % 3 * 16 + 16, np.arange(10) % 4 + 3], 1)
  small = dict(num_packs=2, lookahead=6, seed=3)
  planner = make_planner(sizes, Capacity(96, 64, 4), **small)
  steps = [[[i for i, _ in p] for p in planner.step(s)] for s in (0, 1, 2, 50)]
  assert steps == [
    [[7, 1, 3], [2, 4, 6]],
    [[8, 0], [5, 9]],
    [[2, 7], [5, 1]],
    [[7, 1, 3], [8, 4, 6]],
  ]
  assert planner.step(50)[0][0] == (7, 25)


def test_packs_a_step_only_cut_the_stream_differently():
  stream = lambda n: [
    pack
    for s in range(48 // n)
    for pack in make_planner(digit_sizes(), num_packs=n).step(s)
  ]
  assert stream(1) == stream(3) == stream(16)


def test_orders_differ_between_epochs():
  planner = make_planner(digit_sizes(40), lookahead=40, num_packs=1)
  packs = [planner.step(s)[0] for s in range(40)]
  first = [i for pack in packs for i, visit in pack if visit == 0]
  second = [i for pack in packs for i, visit in pack if visit == 1]
  assert sorted(first) == sorted(second) == list(range(40))
  assert first != second


@pytest.mark.parametrize(
  ("capacity", "says"),
  [
    ((79, 256, 8), r"sample 1 has 80 tokens .* tokens from 79 to 80"),
    ((320, 9, 8), r"sample 0 has 16 tokens .* text from 9 to 15"),
    ((320, 256, 0), "segments=0"),
  ],
)
def test_a_sample_that_never_fits_is_named(capacity, says):
  with pytest.raises(UserError, match=says):
    make_planner(digit_sizes(), Capacity(*capacity))


def test_nothing_to_plan_is_said():
  with pytest.raises(UserError, match="no samples"):
    make_planner(np.zeros((0, 2), int))
  with pytest.raises(UserError, match="sample 1 has no tokens"):
    make_planner(np.array([[16, 4], [0, 4]]))
  with pytest.raises(UserError, match="num_packs=0"):
    make_planner(digit_sizes(), num_packs=0)


def make_grouped(seed=0, shares=(0.6, 0.3, 0.1), **kwargs):
  """Three groups of 400, 90 and 33 samples."""
  groups = np.repeat([0, 1, 2], [400, 90, 33])[
    np.random.default_rng(seed).permutation(523)
  ]
  kwargs = dict(lookahead=100, seed=seed) | kwargs
  sizes = digit_sizes(523)
  return groups, make_planner(sizes, groups=groups, shares=shares, **kwargs)


def read_stream(planner, num_packs):
  """Samples of the first packs, in the order of the stream."""
  steps = range(num_packs // planner.num_packs)
  return [s for step in steps for pack in planner.step(step) for s in pack]


def read_windows(planner, count):
  """The samples of each of the first windows, by their number of samples."""
  stream = read_stream(planner, 4 * count * planner.lookahead)
  cuts = range(0, count * planner.lookahead, planner.lookahead)
  return [stream[cut : cut + planner.lookahead] for cut in cuts]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.1), (5, 1, 1), (1, 1, 1.5)])
def test_every_window_has_its_shares_exactly(seed, shares):
  groups, planner = make_grouped(seed, shares, lookahead=73)
  counts = np.zeros(3)
  for k, window in enumerate(read_windows(planner, 12)):
    found = np.bincount(groups[[i for i, _ in window]], minlength=3)
    wanted = 73 * np.array(shares) / sum(shares)
    counts += found
    assert found.sum() == 73
    assert (np.abs(counts - (k + 1) * wanted) < 1).all()
    assert (np.abs(found - wanted) < 2).all()


def test_a_decimal_share_gives_whole_numbers():
  groups, planner = make_grouped()
  for window in read_windows(planner, 20):
    found = np.bincount(groups[[i for i, _ in window]])
    assert found.tolist() == [60, 30, 10]


@pytest.mark.parametrize("seed", range(4))
def test_every_group_has_epochs_of_its_own(seed):
  groups, planner = make_grouped(seed)
  windows = read_windows(planner, 20)
  seen = collections.Counter(itertools.chain(*windows))
  assert max(seen.values()) == 1  # an index and its visit are one sample
  for g, (size, share) in enumerate([(400, 60), (90, 30), (33, 10)]):
    whole = 20 * share // size
    assert whole >= 3
    for visit in range(whole):
      epoch = [i for i, v in seen if v == visit and groups[i] == g]
      assert sorted(epoch) == np.flatnonzero(groups == g).tolist()
    assert max(v for i, v in seen if groups[i] == g) <= whole


def test_groups_smaller_than_their_share_come_more_than_once_a_window():
  groups, planner = make_grouped(shares=(1, 1, 8), lookahead=500)
  (window,) = read_windows(planner, 1)
  visits = [v for i, v in window if groups[i] == 2]
  assert collections.Counter(visits) == dict.fromkeys(range(12), 33) | {12: 4}


def test_a_step_of_groups_does_not_depend_on_what_was_asked_before():
  _, straight = make_grouped()
  steps = [straight.step(s) for s in range(60)]
  _, resumed = make_grouped()
  for s in (59, 3, 0, 58):
    assert resumed.step(s) == steps[s]


@pytest.mark.parametrize(
  ("kwargs", "says"),
  [
    (dict(shares=(1, -1)), r"clips has the share -1: set 0 or more"),
    (dict(shares=(0, 0)), r"0 batches: every share of images, clips is 0"),
    (dict(shares=(1, float("nan"))), r"clips has the share nan"),
    (dict(groups=np.zeros(8)), r"0 batches: clips has the share 1 and no"),
    (dict(shares=(9, 1), lookahead=9), r"without clips: set 10 or more"),
    (dict(ranks=3), r"num_packs=4 does not divide among 3 data-parallel"),
    (dict(ranks=0), r"ranks=0"),
  ],
)
def test_groups_that_give_no_batch_are_named(kwargs, says):
  given = dict(
    groups=np.arange(8) % 2, shares=(1, 1), names=("images", "clips")
  )
  with pytest.raises(UserError, match=says):
    make_planner(digit_sizes(8), **(given | kwargs))


def test_a_group_of_share_zero_is_left_out():
  groups, planner = make_grouped(shares=(0.5, 0, 0.5))
  drawn = [i for s in range(20) for pack in planner.step(s) for i, _ in pack]
  assert set(groups[drawn]) == {0, 2}


def test_a_window_may_lack_a_group_of_a_small_share():
  """One in 17 and a little: some windows have two, and some have none."""
  shares = (1.2, *[15.8 / 6] * 6)
  sizes = digit_sizes(700)
  groups = np.arange(700) % 7
  planner = make_planner(sizes, groups=groups, shares=shares, lookahead=17)
  drawn = [i for s in range(100) for pack in planner.step(s) for i, _ in pack]
  assert (groups[drawn] == 0).mean() == pytest.approx(1.2 / 17, abs=0.01)


@pytest.mark.parametrize("grouped", [False, True])
def test_what_was_seen_before_a_step_is_counted(grouped):
  if grouped:
    _, planner = make_grouped(lookahead=73)
  else:
    planner = make_planner(digit_sizes(300), lookahead=64)
  counts = np.zeros(len(planner.sizes), int)
  for step in range(60):
    if step % 7 == 0:
      np.testing.assert_array_equal(planner.seen(step), counts)
    for pack in planner.step(step):
      counts[[i for i, _ in pack]] += 1
  assert counts.max() > 1


def test_groups_need_their_shares():
  for given in (
    dict(groups=np.zeros(8)),
    dict(shares=(1,)),
    dict(groups=np.arange(8) % 3, shares=(1, 1)),
  ):
    with pytest.raises(ValueError, match="shares"):
      make_planner(digit_sizes(8), **given)


WIDTHS = dict(width=256, depth=2, patch_width=64, text_width=64, block=128)


def pack_cost(tokens, texts):
  return costs.pack_flops(tokens, texts, **WIDTHS)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_change_no_step_but_its_order(seed):
  sizes, capacity = PLANS[2]
  make = lambda **kwargs: make_planner(
    sizes, capacity, num_packs=16, lookahead=1000, seed=seed, **kwargs
  )
  plain = make()
  for ranks in (1, 2, 4):
    planner = make(ranks=ranks, cost_fn=pack_cost)
    for step in range(12):
      assert sorted(planner.step(step)) == sorted(plain.step(step))
  assert planner.step(0) != plain.step(0)


def imbalance(planner, step):
  """Cost of the dearest rank over the mean."""
  costs_ = [
    pack_cost(*planner.sizes[[i for i, _ in pack]].T.tolist())
    for pack in planner.step(step)
  ]
  load = np.reshape(costs_, (planner.ranks, -1)).sum(1)
  return load.max() / load.mean()


def test_ranks_of_four_packs_cost_the_same():
  sizes, _ = PLANS[2]
  make = lambda cost_fn: make_planner(
    sizes,
    Capacity(98_304, 8192, 64),
    num_packs=32,
    lookahead=2000,
    ranks=8,
    cost_fn=cost_fn,
  )
  even, plain = make(pack_cost), make(None)
  found = [
    np.mean([imbalance(planner, step) for step in range(10)])
    for planner in (even, plain)
  ]
  print(f"imbalance {found[0]:.4f}, without {found[1]:.4f}")
  assert found[0] < 1.04
  assert found[1] > 1.2


@pytest.mark.parametrize("seed", range(5))
def test_the_least_loaded_rank_gets_the_dearest_of_each_round(seed):
  cost = np.random.default_rng(seed).lognormal(size=24)
  order = planning.deal_ranks(cost.tolist(), 6)
  assert sorted(order) == list(range(24))
  dealt = cost[order].reshape(6, 4)
  for k in range(1, 4):
    assert dealt[:, k - 1].min() >= dealt[:, k].max()
    by_load = dealt[np.argsort(dealt[:, :k].sum(1)), k]
    assert (np.diff(by_load) < 0).all()


def test_one_dear_pack_is_paired_with_the_cheapest():
  assert planning.deal_ranks([1, 9, 2, 8], 2) == [1, 0, 3, 2]
