"""Folders of media: captions beside them, and what is wrong with a file."""

import json
import os

import pytest

from goku_jax.data import item_readers
from goku_jax.data.items import open_items
from goku_jax.typing import UserError


def put(root, **files):
  """Files by name; `__` stands for a slash and `_` for the dot."""
  for name, content in files.items():
    path = root / name.replace("__", "/").replace("_", ".")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def only(root):
  (item,) = open_items(str(root))
  return item


def test_media_are_sorted_and_sidecars_are_read(tmp_path):
  put(tmp_path, b_mp4=b"2", a__z_PNG=b"1", b_txt=" A cat\nruns. ", c_gif=b"3")
  put(tmp_path, c_json={"caption": "short", "motion_score": 4, "by": "me"})
  source = open_items(str(tmp_path))
  assert [item.key for item in source] == ["a/z.PNG", "b.mp4", "c.gif"]
  assert [item.media for item in source] == [
    str(tmp_path / item.key) for item in source
  ]
  captions = [item.captions for item in source]
  assert captions == [(), ("A cat\nruns.",), ("short",)]
  assert source[2].scores == {"motion_score": 4.0}
  assert {item.problem for item in source} == {None}
  assert (source.name, source.ignored) == (str(tmp_path), 0)


def test_every_suffix_of_the_list_is_an_item_and_others_are_counted(tmp_path):
  names = ["mp4", "mkv", "webm", "mov", "avi", "gif"]
  names += ["png", "jpg", "jpeg", "webp"]
  put(tmp_path, **{f"a_{name}": b"x" for name in names})
  put(tmp_path, b_txt="of nothing", c_pdf=b"", notes_md="x")
  source = open_items(str(tmp_path))
  assert (len(source), source.ignored) == (10, 3)


def test_files_of_one_stem_share_a_sidecar(tmp_path):
  put(tmp_path, a_mp4=b"1", a_jpg=b"2", a_txt="both", a_json={"caption": "b"})
  source = open_items(str(tmp_path))
  assert [item.captions for item in source] == [("both", "b")] * 2
  assert source.ignored == 0


@pytest.mark.parametrize(
  ("record", "captions"),
  [
    ({"captions": {"short": "s", "dense": "d"}}, ("d", "s")),
    ({"captions": ["one", "two", "one"], "caption": "zero"},
     ("zero", "one", "two")),
    ({"captions": ["", None, "  "], "caption": None}, ()),
    ({}, ()),
  ],
)  # fmt: skip
def test_captions_have_variants_in_a_fixed_order(tmp_path, record, captions):
  put(tmp_path, a_mp4=b"x", a_json=record)
  assert only(tmp_path)[2:] == (captions, {}, None)


def test_scores_are_the_finite_numbers(tmp_path):
  text = '{"a": 1.5, "b": NaN, "c": Infinity, "d": true, "e": "3", "f": -2, '
  put(tmp_path, a_mp4=b"x", a_json=text + '"g": 1' + "0" * 400 + "}")
  assert only(tmp_path).scores == {"a": 1.5, "f": -2.0}


@pytest.mark.parametrize(
  ("sidecar", "content", "reason"),
  [
    ("a_txt", b"x\xe9", "a.txt is not UTF-8"),
    ("a_txt", b"a\0b", "a caption holds a NUL character"),
    ("a_txt", b"x" * 100_000, "a caption has 100000 bytes, more than 65536"),
    ("a_txt", b"x" * 2**21, "a.txt has more than 1048576 bytes"),
    ("a_json", b'{"caption": ', "a.json is not valid JSON"),
    ("a_json", b"[" * 100_000, "a.json is not valid JSON"),
    ("a_json", b'["a"]', "a.json is no JSON object"),
    ("a_json", b'{"caption": 3}', "a caption is no text but int"),
    ("a_json", b'{"caption": "\\ud800"}', "a caption is not UTF-8"),
    ("a_json", b'{"captions": "x"}', "`captions` is neither a list nor an "
     "object"),
  ],
)  # fmt: skip
def test_a_bad_caption_is_a_problem(tmp_path, sidecar, content, reason):
  put(tmp_path, a_mp4=b"x", **{sidecar: content})
  item = only(tmp_path)
  assert item == ("a.mp4", None, (), {}, reason)


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\xef\xbb\xbf"])
def test_an_empty_caption_is_a_missing_one(tmp_path, content):
  put(tmp_path, a_mp4=b"x", a_txt=content)
  assert only(tmp_path)[2:] == ((), {}, None)


def test_the_longest_caption_is_kept(tmp_path):
  put(tmp_path, a_mp4=b"x", a_txt="x" * item_readers.MAX_CAPTION)
  assert len(only(tmp_path).captions[0]) == item_readers.MAX_CAPTION


def test_a_name_that_begins_with_a_dash_is_a_file(tmp_path, monkeypatch):
  put(tmp_path, **{"-in__-i_mp4": b"x"})
  monkeypatch.chdir(tmp_path)
  assert only("-in").media == str(tmp_path / "-in" / "-i.mp4")


def test_hidden_files_and_folders_are_skipped(tmp_path):
  put(tmp_path, a_mp4=b"x", _b_mp4=b"x", _c__d_mp4=b"x")
  source = open_items(str(tmp_path))
  assert (len(source), source.ignored) == (1, 0)


def test_a_link_that_leads_outside_is_a_problem(tmp_path):
  put(tmp_path, in__a_mp4=b"x", in__sub__b_mp4=b"x", out__c_mp4=b"x")
  put(tmp_path, out__secret_txt="s")
  root = tmp_path / "in"
  (root / "c.mp4").symlink_to(tmp_path / "out" / "c.mp4")
  (root / "d.mp4").symlink_to("sub/b.mp4")
  (root / "e.mp4").symlink_to("nowhere.mp4")
  (root / "a.txt").symlink_to("../out/secret.txt")
  (root / "loop").symlink_to(".")
  source = open_items(str(root))
  assert {item.key: item.problem for item in source} == {
    "a.mp4": "a.txt leads outside the folder",
    "c.mp4": "c.mp4 leads outside the folder",
    "d.mp4": None,
    "e.mp4": "e.mp4 is no file",
    "sub/b.mp4": None,
  }


def test_a_linked_folder_is_a_problem_and_may_be_given_itself(tmp_path):
  put(tmp_path, in__a_mp4=b"x", out__c_mp4=b"x")
  (tmp_path / "in" / "more").symlink_to("../out")
  problem = "more/ leads outside the folder"
  items = list(open_items(str(tmp_path / "in")))
  assert items[1] == ("more/", None, (), {}, problem)
  item = only(tmp_path / "in" / "more")
  assert item.media == str(tmp_path / "out" / "c.mp4")


def test_what_is_no_file_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / "a.mp4")
  put(tmp_path, b_mp4=b"x")
  os.mkfifo(tmp_path / "b.txt")
  source = open_items(str(tmp_path))
  reasons = [item.problem for item in source]
  assert reasons == ["a.mp4 is no file", "b.txt is no file"]


def test_a_file_that_vanishes_is_a_problem(tmp_path):
  put(tmp_path, a_mp4=b"x")
  source = open_items(str(tmp_path))
  digest = source.digest()
  (tmp_path / "a.mp4").unlink()
  assert source[0].problem == "a.mp4 is missing"
  assert source.digest() != digest


def test_a_name_that_is_not_utf8_is_a_problem(tmp_path):
  with open(os.fsencode(tmp_path) + b"/x\xe9.mp4", "wb"):
    pass
  item = only(tmp_path)
  assert item.key == "x\\udce9.mp4"
  assert item.problem == "its name is not UTF-8"
  assert open_items(str(tmp_path)).digest()


def test_an_empty_folder_is_an_error_that_says_what_would_do(tmp_path):
  put(tmp_path, a_pdf=b"x")
  with pytest.raises(UserError, match=r"0 files: .* none of \.mp4 \.mkv"):
    open_items(str(tmp_path))


def test_the_digest_tells_lists_apart_but_not_places(tmp_path):
  put(tmp_path, a__x_mp4=b"x", b__x_mp4=b"y", c__x_mp4=b"xx", d__y_mp4=b"x")
  digest = lambda name: open_items(str(tmp_path / name)).digest()
  assert digest("a") == digest("b")
  assert len({digest("a"), digest("c"), digest("d")}) == 3
