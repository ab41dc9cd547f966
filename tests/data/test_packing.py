"""The plan: each sample once an epoch, whoever asks; packs that hold it."""

import collections
import itertools

import numpy as np
import pytest

from goku_jax.data import digits, packing, patches, schema, tokenize
from goku_jax.data.packing import Capacity, Planner
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


def make_samples(shapes, channels=3):
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.normal(size=(*shape, channels)).astype(np.float32)
  return [
    {
      "mean": draw(shape),
      "logvar": draw(shape),
      "text_ids": tokenize.encode("five " * i),
      "class": i,
      "index": 100 + i,
      "visit": i % 2,
    }
    for i, shape in enumerate(shapes)
  ]


@pytest.mark.parametrize("patch_size", [(1, 2, 2), (2, 2, 4), (1, 1, 1)])
def test_unpack_is_the_inverse_of_pack(patch_size):
  samples = make_samples([(2, 4, 4), (4, 8, 4), (2, 2, 8)])
  batch = packing.pack(samples, Capacity(200, 40, 5), patch_size=patch_size)
  P = int(np.prod(patch_size)) * 3
  for name, array in batch.items():
    assert array.dtype == schema.FLOW[name]
    assert array.shape == schema.shape_of(name, B=1, L=200, P=P, S=40, G=5)
  (back,) = packing.unpack(batch, patch_size=patch_size)
  assert len(back) == len(samples)
  for one, two in zip(samples, back, strict=True):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])


def test_a_pack_says_whose_each_place_is():
  samples = make_samples([(1, 4, 4), (2, 4, 4)])
  batch = packing.pack(samples, Capacity(16, 12, 3))
  ids = batch["segment_ids_BL"][0]
  np.testing.assert_array_equal(ids, [1] * 4 + [2] * 8 + [0] * 4)
  text_ids = batch["text_segment_ids_BS"][0]
  np.testing.assert_array_equal(text_ids, [-1, 1] + [2] * 3 + [0] * 7)
  assert batch["text_ids_BS"][0, 0] == tokenize.EOS
  np.testing.assert_array_equal(
    batch["text_positions_BS"][0], [0, 0, 0, 1, 2] + [0] * 7
  )
  np.testing.assert_array_equal(batch["sample_index_BG"], [[100, 101, -1]])
  padding = ids == 0
  assert not batch["tokens_BLP"][0, padding].any()
  assert (batch["tokens_logvar_BLP"][0, padding] == schema.NO_LOGVAR).all()


def test_too_much_for_a_pack_is_refused():
  samples = make_samples([(1, 4, 4), (2, 4, 4)])
  for capacity in ((11, 12, 3), (16, 4, 3), (16, 12, 1)):
    with pytest.raises(ValueError, match="do not fit"):
      packing.pack(samples, Capacity(*capacity))


def test_tokens_go_frame_by_frame_and_row_by_row():
  grid = (2, 3, 4)
  place = np.stack(np.indices((2, 6, 8)), axis=-1)
  tokens = patches.patchify(place, (1, 2, 2))
  positions = patches.grid_positions(grid)
  np.testing.assert_array_equal(tokens[:, :3], positions * [1, 2, 2])
  first_patch = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]  # (ph pw c)
  np.testing.assert_array_equal(tokens[0], np.ravel(first_patch))
  back = patches.unpatchify(tokens, grid, (1, 2, 2))
  np.testing.assert_array_equal(back, place)
  with pytest.raises(ValueError, match="do not divide"):
    patches.patchify(np.zeros((1, 3, 4, 1)), (1, 2, 2))
