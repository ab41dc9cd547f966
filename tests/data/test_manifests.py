"""Manifests: every row is an item, and a bad one says why."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from goku_jax.data.items import open_items
from goku_jax.typing import UserError


@pytest.fixture
def root(tmp_path):
  """A folder with two files, beside a third."""
  folder = tmp_path / "data"
  (folder / "sub").mkdir(parents=True)
  for name in ("data/a.mp4", "data/sub/b.png", "outside.mp4"):
    (tmp_path / name).write_bytes(name.encode())
  return folder


def write(root, name, content):
  path = root / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def write_lines(root, *rows):
  as_line = lambda row: row if isinstance(row, str) else json.dumps(row)
  return write(root, "list.jsonl", "\n".join(map(as_line, rows)))


def test_the_three_kinds_of_manifest_give_the_same_items(root):
  rows = [
    {"path": "sub/b.png", "caption": "B, a \"b\"", "motion_score": 4.2, "n": 3},
    {"path": "./a.mp4", "caption": None, "motion_score": None, "n": 4},
  ]  # fmt: skip
  csv = 'path,caption,motion_score,n,by\nsub/b.png,"B, a ""b""",4.2,3,me\n'
  pa.parquet.write_table(pa.Table.from_pylist(rows), root / "list.parquet")
  lines = write_lines(root, *rows)
  paths = [write(root, "list.csv", csv + "./a.mp4,,nan,4,\n"), lines]
  for path in (*paths, str(root / "list.parquet")):
    source = open_items(path)
    assert list(source) == [
      ("sub/b.png", str(root / "sub/b.png"), ('B, a "b"',),
       {"motion_score": 4.2, "n": 3.0}, None),
      ("a.mp4", str(root / "a.mp4"), (), {"n": 4.0}, None),
    ]  # fmt: skip
    assert (source.name, source.ignored) == (path, 0)


def test_captions_of_a_manifest_have_variants(root):
  variants = {"short": "s", "dense": "d"}
  csv = 'path,captions\na.mp4,"{""short"": ""s"", ""dense"": ""d""}"\n'
  csv += 'sub/b.png,"[""x"", ""y""]"\n'
  rows = [{"path": "a.mp4", "captions": variants}]
  rows += [{"path": "sub/b.png", "captions": ["x", "y"]}]
  for path in (write(root, "list.csv", csv), write_lines(root, *rows)):
    captions = [item.captions for item in open_items(path)]
    assert captions == [("d", "s"), ("x", "y")]


@pytest.mark.parametrize(
  ("path", "key", "reason"),
  [
    ("../outside.mp4", None, "its path leads outside the folder"),
    ("sub/../../outside.mp4", None, "its path leads outside the folder"),
    ("/etc/passwd", None, "its path leads outside the folder"),
    ("http://a.b/c.mp4", None, "its path is a URL, not a file of the folder"),
    ("concat:a.mp4|b.mp4", None, "its path is a URL, not a file of the folder"),
    ("file:a.mp4", None, "its path is a URL, not a file of the folder"),
    ("link.mp4", None, "link.mp4 leads outside the folder"),
    ("none.mp4", None, "none.mp4 is missing"),
    ("sub", None, "sub is no file"),
    ("", "list.jsonl:row 1", "has no path"),
    (None, "list.jsonl:row 1", "has no path"),
    (7, "list.jsonl:row 1", "has no path"),
    ("a\0.mp4", None, "its path holds a NUL character"),
    ("\ud800.mp4", "\\ud800.mp4", "its path is not UTF-8"),
  ],
)  # fmt: skip
def test_a_row_with_a_bad_path_is_a_problem(root, path, key, reason):
  (root / "link.mp4").symlink_to("../outside.mp4")
  (item,) = open_items(write_lines(root, {"path": path, "caption": "c"}))
  assert item == (key or path, None, (), {}, reason)


def test_the_same_path_again_is_a_problem(root):
  rows = ["a.mp4", "sub/../a.mp4", "../x", "a.mp4", "../x"]
  source = open_items(write_lines(root, *({"path": path} for path in rows)))
  assert [item.key for item in source] == [
    "a.mp4", "list.jsonl:row 2", "../x", "list.jsonl:row 4", "list.jsonl:row 5"
  ]  # fmt: skip
  assert source[0].problem is None
  assert source[3].problem == "a.mp4 is listed in row 1 already"


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ("{'path': 'a.mp4'}", "the line is not valid JSON"),
    ("[" * 100_000, "the line is not valid JSON"),
    ('"a.mp4"', "the line is no JSON object"),
    ({"path": "a.mp4", "caption": ["x"]}, "a caption is no text but list"),
    ({"path": "a.mp4", "captions": 4}, "`captions` is neither a list nor an "
     "object"),
    ({"path": "a.mp4", "captions": [{}]}, "a caption is no text but dict"),
    ({"path": "a.mp4", "caption": "x" * 100_000}, "a caption has 100000 bytes, "
     "more than 65536"),
  ],
)  # fmt: skip
def test_a_row_of_wrong_types_is_a_problem(root, row, reason):
  source = open_items(write_lines(root, {"path": "sub/b.png"}, "", row))
  assert [item.problem for item in source] == [None, reason]
  assert source[1].key in ("a.mp4", "list.jsonl:row 3")


def test_bytes_that_are_not_utf8_spoil_their_row_alone(root):
  data = b"path,caption\na.mp4,x\xe9\nsub/b.png,fine\n\xff.mp4,x\n"
  source = open_items(write(root, "list.csv", data))
  assert [item.problem for item in source] == [
    "a caption is not UTF-8", None, "its path is not UTF-8"
  ]  # fmt: skip
  lines = b'{"path": "a.mp4", "caption": "\xe9"}\n{"path": "sub/b.png"}'
  source = open_items(write(root, "list.jsonl", lines))
  assert [item.problem for item in source] == ["a caption is not UTF-8", None]
  column = pa.array([b"x\xe9", b"fine"]).view(pa.string())
  table = pa.table({"path": ["a.mp4", "sub/b.png"], "caption": column})
  pa.parquet.write_table(table, root / "list.parquet")
  source = open_items(str(root / "list.parquet"))
  assert [item.problem for item in source] == ["a caption is not UTF-8", None]


def test_a_row_of_csv_with_too_few_or_many_fields_is_a_problem(root):
  text = 'path,caption,captions\na.mp4,x\n\nsub/b.png,a,b,c\na.mp4,x,"[3"\n'
  source = open_items(write(root, "list.csv", text))
  assert [item.problem for item in source] == [
    "has 2 fields where the header has 3",
    "has 4 fields where the header has 3",
    "`captions` is not valid JSON",
  ]
  assert source[0].key == "list.csv:row 1"


def test_a_stray_quote_makes_one_bad_row(root):
  text = 'path,caption\na.mp4,fine\nsub/b.png,"' + "x\n" * 100_000
  source = open_items(write(root, "list.csv", text))
  assert [item.problem for item in source] == [
    None, "a caption has 200000 bytes, more than 65536"
  ]  # fmt: skip


def test_a_column_may_be_called_problem(root):
  path = write(root, "list.csv", "path,problem\na.mp4,3\nsub/b.png,blur\n")
  first, second = open_items(path)
  assert (first.problem, first.scores) == (None, {"problem": 3.0})
  assert (second.problem, second.scores) == (None, {})


@pytest.mark.parametrize(
  ("name", "content", "reason"),
  [
    ("list.csv", "file,caption\na.mp4,x\n", "no column `path`; it has 'capt"),
    ("list.jsonl", '{"file": "a.mp4"}', "no column `path`; it has 'file'"),
    ("list.jsonl", "\n\n", "0 items"),
    ("list.csv", "path\n", "0 items"),
    ("list.parquet", "hello", "is no Parquet file"),
    ("list.parquet", "", "is no Parquet file"),
  ],
)
def test_a_manifest_of_no_use_is_an_error(root, name, content, reason):
  with pytest.raises(UserError, match=reason):
    open_items(write(root, name, content))


def test_the_digest_knows_captions_and_sizes(root):
  path = write_lines(root, {"path": "a.mp4", "caption": "x"})
  digests = {open_items(path).digest()}
  (root / "a.mp4").write_bytes(b"longer than before")
  digests.add(open_items(path).digest())
  write_lines(root, {"path": "a.mp4", "caption": "y"})
  digests.add(open_items(path).digest())
  assert len(digests) == 3
  assert open_items(path).digest() in digests


def test_without_pyarrow_the_error_says_what_to_install(root, monkeypatch):
  table = pa.table({"path": ["a.mp4"]})
  pa.parquet.write_table(table, root / "list.parquet")
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(UserError, match=r"pyarrow: pip install goku_jax\[data\]"):
    open_items(str(root / "list.parquet"))
