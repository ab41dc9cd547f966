"""Shards: whole or written again, in any order, the same bytes."""

import itertools
import json

import numpy as np
import pytest
import safetensors.numpy
from grain.sources import ArrayRecordDataSource

from goku_jax.data import shards, tokenize
from goku_jax.typing import UserError

ITEMS, EACH = 25, 10
LOGVAR = -2.0


def make_record(i, dtype=np.float32):
  """Latents of one or three frames whose channels differ in place and size."""
  rng = np.random.default_rng(i)
  shape = (1 + 2 * (i % 2), 4, 6, 2)
  mean = np.array([3.0, -1.0]) + np.array([2.0, 0.1]) * rng.normal(size=shape)
  return {
    "mean": mean.astype(dtype),
    "logvar": np.full(shape, LOGVAR, dtype),
    "about": {"captions": [f"the digit {i} — п", "a digit"], "seconds": 0.5},
    "class": i % 10,
  }


def make_writer(folder, items=ITEMS, each=EACH, about=None):
  return shards.ShardWriter(
    folder, items=items, items_per_shard=each, about=about or {"vae": "debug"}
  )


def write(writer, numbers=None, bad=()):
  """Writes shards; items in `bad` give no record."""
  for number in range(len(writer)) if numbers is None else numbers:
    items = writer.items(number)
    dropped = [{"key": str(i), "reason": "torn"} for i in items if i in bad]
    records = (make_record(i) for i in items if i not in bad)
    writer.write(number, records, dropped)
  return writer


@pytest.fixture
def folder(tmp_path):
  write(make_writer(tmp_path / "latents")).finish()
  return tmp_path / "latents"


def flip_byte(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 1
  path.write_bytes(data)


def bytes_of(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_records_hold_what_was_written(folder):
  manifest = shards.read_manifest(folder)
  names = [str(folder / shard["name"]) for shard in manifest["shards"]]
  records = ArrayRecordDataSource(names)
  assert len(records) == ITEMS
  for i in range(ITEMS):
    record, want = safetensors.numpy.load(records[i]), make_record(i)
    np.testing.assert_array_equal(record["mean"], want["mean"])
    assert json.loads(record["about"].tobytes()) == want["about"]
    assert record["class"] == i % 10


def test_the_manifest_counts_all(tmp_path):
  bad = {3, 4, 21}
  manifest = write(make_writer(tmp_path), bad=bad).finish()
  assert manifest["items"] == ITEMS == manifest["records"] + manifest["dropped"]
  assert manifest["dropped"] == 3
  assert manifest["seconds"] == 0.5 * 22
  assert manifest["shapes"] == {"1x4x6": 12, "3x4x6": 10}
  lines = (tmp_path / shards.DROPPED).read_text().splitlines()
  assert [json.loads(line)["key"] for line in lines] == ["3", "4", "21"]
  with np.load(tmp_path / shards.INDEX) as index:
    assert len(index["sizes"]) == 22
    first = [len(tokenize.encode(c)) for c in ("the digit 0 — п", "a digit")]
    np.testing.assert_array_equal(index["pieces"][0], first)


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_any_tasks_in_any_order_write_the_same_bytes(folder, tmp_path, tasks):
  place = tmp_path / str(tasks)
  writers = [make_writer(place) for _ in range(tasks)]
  for task in reversed(range(tasks)):
    assert writers[task].finish() is None
    write(writers[task], range(task, len(writers[task]), tasks))
  writers[-1].finish()
  assert bytes_of(place) == bytes_of(folder)


def test_what_is_whole_is_not_written_again(folder, tmp_path):
  broken = tmp_path / "broken"
  writer = write(make_writer(broken), [0, 1])
  with pytest.raises(TypeError):
    writer.write(2, [*[make_record(i) for i in (20, 21)], None], [])
  assert not list(broken.glob("*partial*"))
  again = make_writer(broken)
  assert [again.done(n) is not None for n in range(3)] == [True, True, False]
  for other in (dict(about={"vae": "x"}), dict(each=9), dict(items=24)):
    assert make_writer(broken, **other).done(0) is None
  write(again, [2]).finish()
  assert bytes_of(broken) == bytes_of(folder)


@pytest.mark.parametrize("suffix", [".array_record", ".json"])
def test_a_shard_that_is_damaged_is_written_again(folder, tmp_path, suffix):
  broken = tmp_path / "broken"
  write(make_writer(broken))
  path = (broken / shards.shard_name(1)).with_suffix(suffix)
  path.write_bytes(path.read_bytes()[:-1])
  writer = make_writer(broken)
  assert writer.done(0)
  assert writer.done(1) is None
  assert writer.finish() is None
  write(writer, [1]).finish()
  assert bytes_of(broken) == bytes_of(folder)


def test_a_shard_without_a_record_is_whole(tmp_path):
  bad = set(range(10))
  manifest = write(make_writer(tmp_path), bad=bad).finish()
  assert [s["records"] for s in manifest["shards"]] == [10, 5]
  shards.check_digests(tmp_path, manifest)
  assert make_writer(tmp_path).done(0)["shard"]["records"] == 0


def test_moments_join_to_those_of_all():
  rng = np.random.default_rng(0)
  parts, whole = [], shards.Moments()
  for n in (3, 5, 2):
    one = shards.Moments()
    for _ in range(n):
      mean = rng.normal(1, 3, (2, 3, 4, 2))
      logvar = rng.normal(-3, 1, mean.shape)
      one.add(mean, logvar)
      whole.add(mean, logvar)
    parts.append(json.loads(json.dumps(one.sums())))
  joined = shards.Moments.join(parts)
  np.testing.assert_allclose(joined.mean, whole.mean, rtol=1e-12)
  np.testing.assert_allclose(joined.std, whole.std, rtol=1e-12)


def test_latents_in_another_memory_order_are_written_right(tmp_path):
  turned = make_record(1)
  turned["mean"] = np.asfortranarray(turned["mean"])
  for name, record in (("a", make_record(1)), ("b", turned)):
    writer = make_writer(tmp_path / name, items=1)
    writer.write(0, [record], [])
    writer.finish()
  assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize("name", ["shard-00001.array_record", "index.npz"])
def test_a_flipped_byte_is_named(folder, name):
  flip_byte(folder / name)
  with pytest.raises(UserError, match=rf"{name} differs from its digest"):
    shards.check_digests(folder, shards.read_manifest(folder))


def test_a_missing_shard_is_named(folder):
  (folder / "shard-00002.array_record").unlink()
  with pytest.raises(UserError, match=r"shard-00002\.array_record is missing"):
    shards.check_digests(folder, shards.read_manifest(folder))


def test_a_folder_without_a_manifest_is_not_whole(tmp_path):
  write(make_writer(tmp_path), [0])
  with pytest.raises(UserError, match=r"has no manifest.json"):
    shards.read_manifest(tmp_path)


def test_another_layout_and_a_broken_manifest_are_said(folder):
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text())
  for layout in (shards.LAYOUT - 1, shards.LAYOUT + 1):
    path.write_text(json.dumps({**manifest, "layout": layout}))
    says = f"layout {layout} and this version reads {shards.LAYOUT}"
    with pytest.raises(UserError, match=says):
      shards.read_manifest(folder)
  path.write_text("{")
  with pytest.raises(UserError, match="not valid JSON"):
    shards.read_manifest(folder)


def test_nothing_and_nan_are_not_written(tmp_path):
  with pytest.raises(UserError, match="0 items"):
    make_writer(tmp_path, items=0)
  with pytest.raises(UserError, match="items_per_shard=0: set 1"):
    make_writer(tmp_path, each=0)
  writer = write(make_writer(tmp_path / "none", 3), bad=range(3))
  with pytest.raises(UserError, match=r"0 records of 3 items: +3  torn"):
    writer.finish()
  bad = make_record(0)
  bad["mean"][0, 0, 0, 0] = np.nan
  with pytest.raises(ValueError, match="record 0 has latents that are not fin"):
    make_writer(tmp_path).write(0, [bad], [])


def test_reasons_are_told_by_how_often():
  reasons = itertools.chain(["torn"] * 2, ["no caption"] * 3)
  dropped = [{"key": f"k{i}", "reason": r} for i, r in enumerate(reasons)]
  assert shards.tell(dropped).splitlines() == [
    "      3  no caption (as k2)",
    "      2  torn (as k0)",
  ]
  assert shards.tell([]) == "none was left out"
