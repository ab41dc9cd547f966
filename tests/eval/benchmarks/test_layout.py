"""The checker tells what keeps a tool from reading just the samples."""

import pytest
from PIL import Image

from goku_jax.eval.benchmarks import layout
from goku_jax.eval.benchmarks.layout import Benchmark, Beside, Sample
from goku_jax.typing import UserError

BESIDE = Beside("0/note.json", "{}")
NESTED = Benchmark(
  "nested",
  (
    Sample("a cat", "0/samples/0.png", 0, None, BESIDE),
    Sample("a cat", "0/samples/1.png", 1, None, BESIDE),
  ),
  2,
  ("[0-9]*/samples/*",),
)
FLAT = Benchmark(
  "flat",
  tuple(
    Sample(name, f"{name}.png", 4 * n + i, i)
    for n, name in enumerate("ab")
    for i in range(4)
  ),
  8,
  ("*",),
)


@pytest.fixture
def nested(tmp_path):
  """A folder that is as `NESTED` wants it."""
  (tmp_path / "0" / "samples").mkdir(parents=True)
  for sample in NESTED.samples:
    (tmp_path / sample.path).write_bytes(b"png")
  (tmp_path / BESIDE.path).write_text(BESIDE.text)
  assert layout.check(tmp_path, NESTED) == []
  return tmp_path


def test_every_path_that_lacks_is_told_once(tmp_path):
  assert layout.check(tmp_path / "none", NESTED) == [
    "missing: 0/samples/0.png",
    "missing: 0/samples/1.png",
    "missing: 0/note.json",
  ]
  assert layout.check(tmp_path, FLAT) == ["missing: a.png", "missing: b.png"]


def test_each_fault_has_its_line(nested):
  (nested / "0/samples/0.png").write_bytes(b"")
  (nested / "0/samples/1.png").unlink()
  (nested / "0/samples/1.png").mkdir()
  (nested / "0/samples/.DS_Store").write_bytes(b"x")
  (nested / "1/samples").mkdir(parents=True)
  (nested / "1/samples/0.png").write_bytes(b"x")
  (nested / "0/note.json").write_text("[]")
  assert layout.check(nested, NESTED) == [
    "empty: 0/samples/0.png",
    "not a file: 0/samples/1.png",
    "another text than the prompts': 0/note.json",
    "superfluous: 0/samples/.DS_Store",
    "superfluous: 1/samples/0.png",
  ]


def test_what_the_tool_does_not_read_may_lie_there(nested):
  (nested / "0/grid.png").write_bytes(b"x")
  (nested / "results.jsonl").write_bytes(b"x")
  assert layout.check(nested, NESTED) == []


def test_grids_are_squares_of_one_size(tmp_path):
  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
  assert layout.check(tmp_path, FLAT) == []
  Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
  assert layout.check(tmp_path, FLAT) == [
    "16 x 16 pixels: b.png, where a square of 8 was expected"
  ]
  (tmp_path / "b.png").write_bytes(b"no picture")
  assert layout.check(tmp_path, FLAT) == ["not a picture: b.png"]


def test_two_samples_of_one_name_are_refused():
  twice = FLAT._replace(samples=FLAT.samples + FLAT.samples[:1])
  assert layout.check_names(FLAT) is FLAT
  with pytest.raises(UserError, match=r"a\.png is there for two samples"):
    layout.check_names(twice)
