"""Records of items: what is written is read, and damage is named."""

import os

import pytest
from array_record.python import array_record_module

from goku_jax.data.items import Item, open_items, write_records
from goku_jax.typing import UserError


def make_items(n, begin=0):
  return [
    Item(f"a/{i}.mp4", os.urandom(500), (f"п {i}", "b"), {"motion_score": 0.1})
    for i in range(begin, begin + n)
  ]


def flip(path, content):
  """Changes a bit of the record that holds `content`."""
  data = bytearray(path.read_bytes())
  data[data.index(content) + 9] ^= 1
  path.write_bytes(data)


def test_what_was_written_is_read(tmp_path):
  items = [*make_items(3), Item("empty.png", b"")]
  path = tmp_path / "new" / "x.array_record"
  assert write_records(path, iter(items)) == 4
  source = open_items(str(path))
  assert list(source) == items
  assert (source.name, source.ignored) == (str(path), 0)
  assert os.listdir(path.parent) == [path.name]


def test_media_in_files_are_taken_along(tmp_path):
  (tmp_path / "a.mp4").write_bytes(b"media")
  (tmp_path / "a.txt").write_text("caption")
  path = tmp_path / "out" / "x.array_record"
  write_records(path, open_items(str(tmp_path)))
  path = str(path)
  assert list(open_items(path)) == [
    ("a.mp4", b"media", ("caption",), {}, None)
  ]  # fmt: skip


def test_shards_of_a_folder_or_a_glob_are_one_source(tmp_path):
  items = make_items(5)
  write_records(tmp_path / "b.array_record", items[3:])
  write_records(tmp_path / "a.array_record", items[:3])
  for path in (tmp_path, tmp_path / "*.array_record"):
    assert list(open_items(str(path))) == items
  assert list(open_items(str(tmp_path / "b*.array_record"))) == items[3:]


@pytest.mark.parametrize(
  "items",
  [make_items(2) * 2, [*make_items(1), Item("b", None, problem="is bad")]],
)
def test_a_bad_item_is_not_written_and_leaves_no_shard(tmp_path, items):
  with pytest.raises(ValueError, match=r"written already|b cannot be written"):
    write_records(tmp_path / "x.array_record", items)
  assert os.listdir(tmp_path) == []


def test_a_flipped_byte_spoils_one_record(tmp_path):
  items = make_items(4)
  path = tmp_path / "x.array_record"
  write_records(path, items)
  flip(path, items[2].media)
  *_, bad, last = source = list(open_items(str(path)))
  assert (source[:2], last) == (items[:2], items[3])
  assert bad.key == "x.array_record:2"
  reason = "record 2 of x.array_record cannot be read: Corrupted"
  assert bad.problem.startswith(reason)


@pytest.mark.parametrize("content", [b"", b"text" * 100, None])
def test_a_damaged_shard_is_a_problem(tmp_path, content):
  items = make_items(3)
  for name in "ab":
    write_records(tmp_path / f"{name}.array_record", items)
  path = tmp_path / "a.array_record"
  path.write_bytes(path.read_bytes()[:-700] if content is None else content)
  broken, *rest = open_items(str(tmp_path))
  assert rest == items
  assert (broken.key, broken.media) == ("a.array_record", None)
  assert "a.array_record cannot be read" in broken.problem


def test_records_of_something_else_are_problems(tmp_path):
  path = tmp_path / "x.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  header = b'{"key": "a", "captions": 3, "scores": {}}'
  for data in (b"", b"\xff\xff\xff\xffabc", b"\2\0\0\0{}", b"\2\0\0\0[]",
               len(header).to_bytes(4, "little") + header):  # fmt: skip
    writer.write(data)
  writer.close()
  reasons = [item.problem for item in open_items(str(path))]
  assert reasons[:4] == ["is no record of an item"] * 4
  assert reasons[4] == "`captions` is neither a list nor an object"


def test_shards_without_records_are_an_error(tmp_path):
  write_records(tmp_path / "x.array_record", [])
  with pytest.raises(UserError, match="0 records"):
    open_items(str(tmp_path / "x.array_record"))


def test_the_digest_tells_shards_apart(tmp_path):
  path = tmp_path / "x.array_record"
  digests = set()
  for n in (1, 2000):
    write_records(path, make_items(n))
    digests.add(open_items(str(path)).digest())
  assert len(digests) == 2
