"""Tars of WebDataset: grouped by name, read by place, broken ones named."""

import io
import json
import tarfile

import pytest

from goku_jax.data import tars
from goku_jax.data.items import open_items
from goku_jax.typing import UserError


def write_tar(path, *members, **options):
  """A tar of (name, bytes), text, objects as JSON, or `TarInfo`s."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w", **options) as tar:
    for member in members:
      if isinstance(member, tarfile.TarInfo):
        tar.addfile(member)
        continue
      name, data = member
      data = json.dumps(data) if isinstance(data, dict) else data
      data = data.encode() if isinstance(data, str) else data
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def special(name, kind):
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, "/etc/passwd"
  return info


def test_members_are_grouped_by_the_name_up_to_its_first_dot(tmp_path):
  long = "d" * 90 + "/" + "é" * 90
  path = write_tar(
    tmp_path / "a.tar",
    ("x/7.txt", " first "),  # captions may come before the media
    ("x/7.left.mp4", b"LEFT"),
    ("x/7.right.mp4", b"RIGHT!"),
    ("x/7.json", {"captions": ["second"], "motion_score": 4.5}),
    ("y/7.PNG", b"png"),
    (f"./{long}.jpg", b"long"),
    (f"{long}.txt", "of a long name"),
  )
  source = open_items(str(path))
  both = ("first", "second"), {"motion_score": 4.5}, None
  assert list(source) == [
    ("x/7.left.mp4", b"LEFT", *both),
    ("x/7.right.mp4", b"RIGHT!", *both),
    ("y/7.PNG", b"png", (), {}, None),
    (f"{long}.jpg", b"long", ("of a long name",), {}, None),
  ]
  assert (source.name, source.ignored) == (str(path), 0)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_old_formats_are_read(tmp_path, format):
  path = write_tar(tmp_path / "a.tar", ("a.mp4", b"1" * 999), format=format)
  assert open_items(str(path))[0].media == b"1" * 999


def test_what_is_no_item_is_counted(tmp_path):
  path = write_tar(
    tmp_path / "a.tar",
    special("dir", tarfile.DIRTYPE),
    special("link.mp4", tarfile.SYMTYPE),
    special("hard.mp4", tarfile.LNKTYPE),
    special("device.mp4", tarfile.CHRTYPE),
    ("a.mp4", b"1"),
    ("a.cls", "3"),
    ("._a.mp4", b"resource fork"),
    ("b.txt", "of nothing"),
  )
  source = open_items(str(path))
  assert [item.key for item in source] == ["a.mp4"]
  assert source.ignored == 6


def test_tars_of_a_folder_or_a_glob_are_one_source(tmp_path):
  write_tar(tmp_path / "b.tar", ("1.mp4", b"b"))
  write_tar(tmp_path / "a.tar", ("0.mp4", b"a"))
  write_tar(tmp_path / "sub" / "c.tar", ("2.mp4", b"c"))
  keys = lambda path: [item.key for item in open_items(str(path))]
  assert keys(tmp_path) == ["0.mp4", "1.mp4", "2.mp4"]
  assert keys(tmp_path / "*.tar") == ["0.mp4", "1.mp4"]
  assert keys(tmp_path / "[b].tar") == ["1.mp4"]
  (tmp_path / "x.mp4").write_bytes(b"")
  source = open_items(str(tmp_path))
  assert ([item.key for item in source], source.ignored) == (["x.mp4"], 3)


def test_a_key_again_is_a_problem(tmp_path):
  write_tar(tmp_path / "a.tar", ("0.mp4", b"first"), ("0.mp4", b"second"))
  write_tar(tmp_path / "b.tar", ("0.mp4", b"third"), ("1.mp4", b"else"))
  items = list(open_items(str(tmp_path)))
  assert len({item.key for item in items}) == 4
  assert [item.media for item in items] == [b"first", None, None, b"else"]
  assert items[2].problem == "0.mp4 is in a.tar already"


@pytest.mark.parametrize(
  ("name", "content", "reason"),
  [
    ("0.txt", b"x\xe9", "0.txt is not UTF-8"),
    ("0.txt", b"x" * 100_000, "a caption has 100000 bytes, more than 65536"),
    ("0.txt", b"x" * 2**21, "0.txt has more than 1048576 bytes"),
    ("0.json", b"{", "0.json is not valid JSON"),
  ],
)
def test_a_bad_caption_is_a_problem(tmp_path, name, content, reason):
  path = write_tar(tmp_path / "a.tar", ("0.mp4", b"x"), (name, content))
  assert list(open_items(str(path))) == [("0.mp4", None, (), {}, reason)]


def three(path):
  pairs = [
    ((f"{i}.mp4", bytes([i]) * 3000), (f"{i}.txt", f"text {i}"))
    for i in range(3)
  ]
  return write_tar(path, *sum(pairs, ()))


@pytest.mark.parametrize(
  ("length", "whole", "reason"),
  [
    (2 * 4608 + 512 + 100, 2, "ends early after 1.txt"),  # in the media
    (2 * 4608 + 512, 2, "ends early after 1.txt"),  # before it
    (2 * 4608 + 200, 2, "ends early after 1.txt"),  # in its header
    (2 * 4608, 2, "ends early after 1.txt"),  # between members
    (2 * 4608 + 3584 + 512 + 2, 2, "ends early after 1.txt"),  # its caption
    (3 * 4608, 3, "ends early after 2.txt"),  # the end itself
    (700, 0, "ends early"),
    (100, 0, "is no tar file"),
    (0, 0, "is no tar file"),
  ],
)
def test_a_tar_that_ends_early_keeps_what_is_before(
  tmp_path, length, whole, reason
):
  path = three(tmp_path / "a.tar")
  path.write_bytes(path.read_bytes()[:length])
  three_more = write_tar(tmp_path / "b.tar", ("9.mp4", b"9"))
  *items, broken, after = open_items(str(tmp_path / "*.tar"))
  assert [item.captions for item in items] == [
    (f"text {i}",) for i in range(whole)
  ]
  assert broken == ("a.tar", None, (), {}, f"a.tar {reason}")
  assert (after.media, three_more.name) == (b"9", "b.tar")


def test_a_damaged_header_is_a_problem(tmp_path):
  path = three(tmp_path / "a.tar")
  data = bytearray(path.read_bytes())
  data[4608 + 5] ^= 1
  path.write_bytes(data)
  first, broken = open_items(str(path))
  assert (first.key, first.captions) == ("0.mp4", ("text 0",))
  assert broken.problem == "a.tar has no valid header after 0.txt"


def test_text_renamed_to_tar_is_a_problem(tmp_path):
  (tmp_path / "a.tar").write_text("hello " * 1000)
  (item,) = open_items(str(tmp_path))
  assert item.problem == "a.tar is no tar file"


def test_a_tar_that_shrinks_later_gives_problems(tmp_path):
  path = three(tmp_path / "a.tar")
  source = open_items(str(path))
  path.write_bytes(path.read_bytes()[:5500])
  assert [item.problem for item in source] == [
    None, "a.tar ends early", "a.tar ends early"
  ]  # fmt: skip
  path.unlink()
  assert source[0].problem == "cannot be read: No such file or directory"


def test_a_tar_without_media_is_an_error(tmp_path):
  write_tar(tmp_path / "a.tar", ("a.txt", "x"))
  with pytest.raises(UserError, match="0 files"):
    open_items(str(tmp_path / "a.tar"))


def test_the_digest_tells_tars_apart(tmp_path):
  digests = set()
  for members in [("a.mp4", b"1")], [("b.mp4", b"1")], [("a.mp4", b"12")]:
    path = write_tar(tmp_path / "a.tar", *members)
    digests.add(open_items(str(path)).digest())
  assert len(digests) == 3


def test_names_and_links_that_lead_out_lead_nowhere(tmp_path, monkeypatch):
  """A name is a key; links and devices are no items."""
  monkeypatch.chdir(tmp_path)
  names = ["../../out.mp4", "/etc/out.mp4", "a/../../b/out.mp4"]
  path = write_tar(
    tmp_path / "in" / "a.tar",
    *((name, b"film") for name in names),
    special("link.mp4", tarfile.SYMTYPE),
    special("hard.mp4", tarfile.LNKTYPE),
    special("device.mp4", tarfile.CHRTYPE),
    special("pipe.mp4", tarfile.FIFOTYPE),
  )
  source = open_items(str(path))
  assert [item.media for item in source] == [b"film"] * len(names)
  assert source.ignored == 4
  assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_a_member_too_large_to_be_held_is_a_problem(tmp_path):
  info = tarfile.TarInfo("a.mp4")
  info.size = tars.MAX_MEDIA + 1
  with open(tmp_path / "a.tar", "wb") as file:  # a hole takes no room
    file.write(info.tobuf())
    file.truncate(info.size + 3 * tarfile.BLOCKSIZE)
  (item,) = open_items(str(tmp_path / "a.tar"))
  assert item.problem == "has 4294967297 bytes, more than 4294967296"


def test_the_pipe_of_webdataset_is_no_command(tmp_path):
  for name in (f"pipe:touch {tmp_path}/x", f"pipe:touch {tmp_path}/x|a.tar"):
    with pytest.raises(UserError):
      open_items(name)
  assert not list(tmp_path.iterdir())
