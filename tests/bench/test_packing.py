"""The bench of packing measures what it says, and meets its aims."""

import itertools
import json

import numpy as np
import pytest

from goku_jax import costs
from goku_jax.bench import pack_times, packing
from goku_jax.data.packing import Capacity
from tests import runs


def test_the_mix_is_what_the_suite_says():
  mix = packing.make_mix()
  image = mix[:, 0] == 1
  assert image.mean() == pytest.approx(0.6, abs=0.02)
  assert len(np.unique(mix[image, 1:3], axis=0)) == 20
  assert set(mix[~image, 0]) == set(range(5, 26))  # 17 to 97 frames
  tokens = mix[:, :3].prod(1)
  assert tokens.max() == 90_000
  for height, width in packing.CASCADE:
    found = packing.shapes(height, width)
    assert found[0] == (height, width)
    assert found[-1] == (width, height)
    pixels = np.prod(found, axis=1) / (height * width)
    assert ((pixels > 0.96) & (pixels <= 1)).all()


def test_packs_are_fuller_and_ranks_more_even_than_other_ways():
  found = packing.compare(1)
  assert found["fill"] >= 0.99
  assert found["imbalance"] <= 1.03
  others = ("padded_to_the_longest", "buckets_of_one_shape")
  for name in (*others, "first_fit_decreasing"):
    assert found[name]["fill"] < found["fill"]
  for name in ("buckets_of_one_shape", "one_random_pack_a_rank"):
    assert found[name]["imbalance"] > 1.5
  for way in (found, *(found[name] for name in others)):
    assert way["planned_samples_per_second"] > 0


def test_padding_and_buckets_take_each_sample_once_at_most():
  mix = packing.make_mix(2000)
  sizes = np.stack([mix[:, :3].prod(1), mix[:, 3]], axis=1)
  padded, bucketed = packing.pad(sizes), packing.bucket(mix)
  assert sorted(itertools.chain(*padded)) == list(range(2000))
  assert all(len(batch) == 1 for batch in padded)
  members = list(itertools.chain(*bucketed))
  assert len(set(members)) == len(members) > 500
  for batch in bucketed:
    (shape,) = np.unique(mix[batch, :3], axis=0)
    assert len(batch) == packing.CAPACITY.tokens // shape.prod()


def test_first_fit_takes_the_first_pack_with_room():
  sizes = np.array([[5, 1], [6, 1], [4, 1], [3, 9], [2, 1]])
  packs = packing.first_fit(sizes, Capacity(tokens=10, text=11, segments=2))
  assert packs == [[1, 2], [0, 3], [4]]


@pytest.mark.slow
def test_a_measured_table_is_read_back(tmp_path):
  path = tmp_path / "made" / "table.json"
  flags = [f"--calibrate={path}", "--variant=debug", "--tokens=64"]
  runs.run_job("bench", "--suite=packing", "--rounds=1", *flags)
  table = json.loads(path.read_text())
  layouts = len(pack_times.COUNTS) * len(pack_times.FILLS)
  assert len(table["rows"]) == layouts
  seconds = costs.calibrated(str(path))
  least, _, most = np.percentile(
    [row[2] for row in table["rows"]], [0, 50, 100]
  )
  assert least / 2 < seconds([64]) < 2 * most
