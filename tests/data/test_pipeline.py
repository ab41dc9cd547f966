"""Batches: hosts join to the global batch, resumes go on, nothing is missed."""

import collections

import numpy as np
import pytest

from goku_jax.data import (
  digits,
  packing,
  pipeline,
  planning,
  schema,
  sources,
  tokenize,
)
from goku_jax.typing import UserError

PATCH = (1, 8, 8)
CAPACITY = packing.Capacity(tokens=600, text=128, segments=6)


@pytest.fixture(scope="module")
def raw():
  return digits.Digits(num_samples=60)


def make_flow(raw, max_text=64, num_packs=4, **kwargs):
  source = sources.Pixels(raw)
  planner = planning.Planner(
    source.sizes(PATCH, max_text),
    capacity=CAPACITY,
    num_packs=num_packs,
    lookahead=40,
    seed=0,
  )
  defaults = {"patch_size": PATCH, "first_step": 0, "num_steps": 6}
  return pipeline.flow_batches(source, planner, **(defaults | kwargs))


def share(host, hosts):
  """Rows of a host among those of a batch."""
  return lambda count: np.split(np.arange(count), hosts)[host]


def make_vae(raw, **kwargs):
  defaults = {"num_clips": 4, "num_images": 8, "seed": 0}
  defaults |= {"first_step": 0, "num_steps": 6}
  return pipeline.vae_batches(raw, **(defaults | kwargs))


def assert_same(one, two):
  assert one.keys() == two.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("make", [make_flow, make_vae])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_shares_of_hosts_join_to_the_global_batch(raw, make, hosts):
  shares = [
    make(raw, rows_of=share(h, hosts), threads=1 + h) for h in range(hosts)
  ]
  for whole, *parts in zip(make(raw), *shares, strict=True):
    joined = {k: np.concatenate([p[k] for p in parts]) for k in whole}
    assert_same(whole, joined)


def test_rows_need_not_lie_in_a_row(raw):
  (batch,) = make_flow(raw, num_steps=1)
  (odd,) = make_flow(raw, num_steps=1, rows_of=lambda n: np.arange(1, n, 2))
  assert_same({name: array[1::2] for name, array in batch.items()}, odd)


@pytest.mark.parametrize("make", [make_flow, make_vae])
def test_a_resumed_stream_goes_on(raw, make):
  straight = list(make(raw))
  resumed = list(make(raw, first_step=4, num_steps=2))
  assert len(straight) == 6
  for one, two in zip(straight[4:], resumed, strict=True):
    assert_same(one, two)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_every_sample_of_an_epoch_is_read_once_whatever_the_hosts(raw, hosts):
  seen = collections.Counter()
  for h in range(hosts):
    for batch in make_flow(
      raw, num_steps=12, rows_of=share(h, hosts), num_packs=4
    ):
      here = batch["sample_index_BG"] >= 0
      index, visit = batch["sample_index_BG"][here], batch["visit_BG"][here]
      seen.update(zip(index.tolist(), visit.tolist(), strict=True))
  assert all(seen[i, 0] == 1 for i in range(60))
  assert max(seen.values()) == 1


def test_a_batch_is_as_the_schema_says(raw):
  batch = next(make_flow(raw))
  sizes = dict(B=4, L=600, P=192, S=128, G=6, E=0, K=0)
  assert batch.keys() == schema.FLOW.keys()
  for name, array in batch.items():
    assert array.dtype == schema.FLOW[name]
    assert array.shape == schema.shape_of(name, **sizes)
  for b in range(4):
    held = set(range(1, 1 + (batch["sample_index_BG"][b] >= 0).sum()))
    assert set(batch["segment_ids_BL"][b]) - {0} == held
    assert set(batch["text_segment_ids_BS"][b]) - {0, -1} == held
    assert (batch["text_segment_ids_BS"][b] == -1).sum() == 1
  for name, array in next(make_vae(raw)).items():
    assert array.dtype == schema.VAE[name]


def test_a_batch_holds_the_samples_that_it_names(raw):
  for batch in make_flow(raw, num_steps=2):
    for pack in packing.unpack(batch, patch_size=PATCH):
      for sample in pack:
        want = raw[sample["index"]]
        video = np.rint((sample["mean"] + 1) * 127.5)
        np.testing.assert_array_equal(video, want["video"])
        ids = tokenize.encode(want["caption"])
        np.testing.assert_array_equal(sample["text_ids"], ids)
        assert sample["class"] == want["class"]
  for batch in make_vae(raw, num_steps=2):
    for kind in pipeline.KINDS:
      for video, i in zip(
        batch[f"{kind}_BTHWC"], batch[f"{kind}_index_B"].tolist(), strict=True
      ):
        np.testing.assert_array_equal(video, raw[i]["video"])


def test_long_captions_are_cut_as_planned(raw):
  """And as sampling cuts them."""
  for sample in packing.unpack(next(make_flow(raw, 9)), patch_size=PATCH)[0]:
    ids = tokenize.encode(raw[sample["index"]]["caption"], 9)
    np.testing.assert_array_equal(sample["text_ids"], ids)
    assert len(ids) == 9


def test_clips_and_images_are_each_seen_once_an_epoch(raw):
  seen = {kind: collections.Counter() for kind in pipeline.KINDS}
  for batch in make_vae(raw, num_steps=16):
    for kind, counter in seen.items():
      names = (batch[f"{kind}_{k}_B"].tolist() for k in ("index", "visit"))
      counter.update(zip(*names, strict=True))
  for parity, counter in zip((1, 0), seen.values(), strict=True):
    assert all(counter[i, v] == 1 for i in range(parity, 60, 2) for v in (0, 1))
    assert max(counter.values()) == 1


def test_one_kind_alone_leaves_the_other_empty(raw):
  batch = next(make_vae(raw, num_images=0))
  assert batch["image_BTHWC"].shape == (0, 1, 32, 32, 3)
  assert batch["image_index_B"].shape == (0,)
  assert len(batch["video_BTHWC"]) == 4


@pytest.mark.parametrize(
  ("make", "kwargs", "says"),
  [
    (make_flow, {"num_steps": 0}, "0 batches: num_steps=0"),
    (make_vae, {"num_clips": 0, "num_images": 0}, "are both 0"),
  ],
)
def test_zero_batches_say_why(raw, make, kwargs, says):
  with pytest.raises(UserError, match=says):
    make(raw, **kwargs)


def test_a_kind_that_the_source_lacks_is_named():
  raw = digits.Digits(num_samples=20, image_share=1.0)
  with pytest.raises(UserError, match="4 of kind video"):
    make_vae(raw)


def test_a_plan_of_another_source_is_refused(raw):
  planner = planning.Planner(
    np.ones((3, 2)), capacity=CAPACITY, num_packs=1, lookahead=1, seed=0
  )
  with pytest.raises(ValueError, match="plan is of 3 samples"):
    pipeline.flow_batches(
      sources.Pixels(raw),
      planner,
      patch_size=PATCH,
      first_step=0,
      num_steps=1,
    )


def test_a_step_covers_the_times_evenly_however_it_is_dealt(raw):
  for batch in make_flow(raw):
    here = batch["sample_index_BG"] >= 0
    u = np.sort(batch["quantile_BG"][here])
    assert len(u) > 10
    np.testing.assert_array_equal(np.floor(u * len(u)), np.arange(len(u)))


def test_the_quantile_belongs_to_the_sample():
  packs = (((4, 0), (7, 1)), ((2, 0), (9, 0), (4, 1)))
  found = pipeline.draw_quantiles(packs, 3, 5)
  turned = pipeline.draw_quantiles((packs[1][::-1], (), packs[0]), 3, 5)
  assert found == turned
  assert len(set(found.values())) == 5
  assert found != pipeline.draw_quantiles(packs, 4, 5)
  assert found != pipeline.draw_quantiles(packs, 3, 6)


def test_no_part_of_the_times_is_any_samples_own():
  """Over steps each sample meets all of them."""
  pack = tuple((i, 0) for i in range(10))
  u = [pipeline.draw_quantiles((pack,), 0, step) for step in range(2000)]
  for i in (0, 9):
    counts, _ = np.histogram([x[i, 0] for x in u], 10, (0, 1))
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)
