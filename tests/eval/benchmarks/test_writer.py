"""What is written is the layout, through stops and side by side."""

import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from goku_jax import lines
from goku_jax.data import video_io
from goku_jax.eval.benchmarks import (
  compbench,
  dpg,
  geneval,
  layout,
  vbench,
  writer,
)
from goku_jax.typing import UserError

RUN = {"step": 4, "weights": "ema", "rewriter": None}


def read(name, folder):
  """A benchmark of two prompts, out of files as its tool has them."""
  folder.mkdir()
  if name == "vbench":
    prompts = [
      {"prompt_en": "a cat, still.", "dimension": ["temporal_flickering"]},
      {"prompt_en": "a dog's façade", "dimension": ["scene"]},
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return vbench.read(folder / "prompts.json")
  if name == "geneval":
    rows = [{"tag": "counting", "prompt": prompt} for prompt in ("one", "two")]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return geneval.read(folder / "m.jsonl")
  if name == "dpg":
    for item in ("a1", "b2"):
      (folder / f"{item}.txt").write_text(f"scene {item}")
    return dpg.read(folder)
  for category in compbench.CATEGORIES:
    (folder / f"{category}_val.txt").write_text("a red cup\na red cap\n")
  return compbench.read(folder)


def draw(benchmark, samples=None, size=16):
  """(sample, pixels): noise that the place of the sample alone gives."""
  for sample in benchmark.samples if samples is None else samples:
    shape = (2, size, size, 3) if benchmark.fps else (size, size, 3)
    rng = np.random.default_rng(sample.seed_index)
    yield sample, rng.integers(0, 256, shape, np.uint8)


def write_all(writes, drawn):
  for sample, pixels in drawn:
    writes.write(sample, pixels)


def files_of(folder):
  paths = (path for path in folder.rglob("*") if path.is_file())
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


@pytest.mark.parametrize("name", ["vbench", "geneval", "dpg", "compbench"])
def test_what_is_written_is_the_whole_layout_and_nothing_else(tmp_path, name):
  benchmark = read(name, tmp_path / "prompts")
  out = tmp_path / "out"
  assert len(layout.check(out, benchmark)) > 1
  writes = writer.Writer(out, benchmark, RUN)
  write_all(writes, draw(benchmark))
  writes.finish()
  assert layout.check(out, benchmark) == []
  wanted = {sample.path for sample in benchmark.samples}
  wanted |= {s.beside.path for s in benchmark.samples if s.beside}
  assert set(files_of(out)) == wanted
  assert {path.name for path in (tmp_path / "out.made").iterdir()} == {
    "run.json",
    "samples.jsonl",
  }


@pytest.mark.parametrize("name", ["vbench", "geneval", "dpg", "compbench"])
def test_a_stopped_writer_goes_on_to_the_same_files(tmp_path, name):
  benchmark = read(name, tmp_path / "prompts")
  once, twice = tmp_path / "once", tmp_path / "twice"
  write_all(writer.Writer(once, benchmark, RUN), draw(benchmark))
  first = writer.Writer(twice, benchmark, RUN)
  write_all(first, draw(benchmark, benchmark.samples[:6]))
  second = writer.Writer(twice, benchmark, RUN)
  assert second.missing() == list(benchmark.samples[6:])
  write_all(second, draw(benchmark))
  assert second.missing() == []
  assert files_of(twice) == files_of(once)


@pytest.mark.parametrize("name", ["vbench", "dpg"])
def test_whoever_looks_sees_whole_files_of_the_layout_alone(tmp_path, name):
  benchmark = read(name, tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  seen, done = set(), threading.Event()

  def look():
    while not done.is_set():
      for entry in os.scandir(tmp_path / "out"):
        seen.add((entry.name, entry.stat().st_size))

  thread = threading.Thread(target=look)
  thread.start()
  write_all(writes, draw(benchmark, size=128))
  done.set()
  thread.join()
  whole = {(k, len(v)) for k, v in files_of(tmp_path / "out").items()}
  assert seen <= whole


def test_what_exists_is_not_written_again(tmp_path):
  benchmark = read("geneval", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  sample, pixels = next(draw(benchmark))
  writes.write(sample, pixels)
  before = files_of(tmp_path)
  writes.write(sample, 255 - pixels)
  assert files_of(tmp_path) == before


def test_an_empty_file_is_written_anew(tmp_path):
  benchmark = read("geneval", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  write_all(writes, draw(benchmark))
  (tmp_path / "out" / benchmark.samples[3].path).write_bytes(b"")
  assert writes.missing() == [benchmark.samples[3]]
  write_all(writes, draw(benchmark))
  assert layout.check(tmp_path / "out", benchmark) == []


def test_a_video_has_its_frames_at_8_a_second(tmp_path):
  benchmark = read("vbench", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  write_all(writes, draw(benchmark, benchmark.samples[-1:]))
  path = tmp_path / "out" / "a dog's façade-4.mp4"
  assert video_io.probe(path) == (2, 16, 16, 8.0)


def test_a_grid_holds_its_parts_row_by_row_to_the_pixel(tmp_path):
  benchmark = read("dpg", tmp_path / "prompts")
  parts = list(draw(benchmark, benchmark.samples[4:]))
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  write_all(writes, parts[::-1])
  with Image.open(tmp_path / "out" / "b2.png") as image:
    crops = [
      image.crop((x, y, x + 16, y + 16))
      for x, y in ((0, 0), (16, 0), (0, 16), (16, 16))
    ]
  for crop, (_, pixels) in zip(crops, parts, strict=True):
    np.testing.assert_array_equal(np.asarray(crop), pixels)


def test_a_grid_appears_with_its_last_part(tmp_path):
  benchmark = read("dpg", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  write_all(writes, draw(benchmark, benchmark.samples[:3]))
  assert files_of(tmp_path / "out") == {}
  write_all(writes, draw(benchmark, benchmark.samples[3:4]))
  assert set(files_of(tmp_path / "out")) == {"a1.png"}
  assert files_of(tmp_path / "out.made" / "parts") == {}


def test_finish_joins_parts_that_a_stop_left_apart(tmp_path):
  benchmark = read("dpg", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  for item in ("a1", "b2"):
    for i in range(4):
      path = tmp_path / "out.made" / "parts" / f"{item}.{i}.png"
      Image.new("RGB", (8, 8)).save(path)
  assert writes.missing() == []
  writes.finish()
  assert layout.check(tmp_path / "out", benchmark) == []


def test_lines_tell_prompts_indices_and_paths(tmp_path):
  benchmark = read("compbench", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  write_all(writes, draw(benchmark, benchmark.samples[:10]))
  for sample, pixels in draw(benchmark, benchmark.samples[10:20]):
    writes.write(sample, pixels, "a cap, all in red")
  found = lines.read(tmp_path / "out.made" / "samples.jsonl")
  assert len(found) == 20
  assert found[10] == {
    "prompt": "a red cap",
    "rewritten": "a cap, all in red",
    "index": 10,
    "path": "color/samples/a red cap_000010.png",
    "part": None,
  }
  assert found[0]["rewritten"] is None


def test_two_runs_do_not_mix_in_a_folder(tmp_path):
  benchmark = read("geneval", tmp_path / "prompts")
  writer.Writer(tmp_path / "out", benchmark, RUN)
  with pytest.raises(UserError, match=r"another run \(step\)"):
    writer.Writer(tmp_path / "out", benchmark, RUN | {"step": 5})


def test_a_folder_of_other_files_is_refused(tmp_path):
  benchmark = read("geneval", tmp_path / "prompts")
  with pytest.raises(UserError, match="holds files already"):
    writer.Writer(tmp_path / "prompts", benchmark, RUN)


def test_parts_that_make_no_square_are_refused(tmp_path):
  benchmark = read("dpg", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  wide = np.zeros((16, 24, 3), np.uint8)
  with pytest.raises(UserError, match="square images, not 16 x 24"):
    writes.write(benchmark.samples[0], wide)
  write_all(writes, draw(benchmark, benchmark.samples[:3]))
  with pytest.raises(UserError, match="differ in size"):
    write_all(writes, draw(benchmark, benchmark.samples[3:4], size=8))


@pytest.mark.parametrize(
  "pixels",
  [
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4), np.uint8),
    np.zeros((2, 4, 4, 3), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
  ],
)
def test_what_is_no_image_is_refused(tmp_path, pixels):
  benchmark = read("geneval", tmp_path / "prompts")
  writes = writer.Writer(tmp_path / "out", benchmark, RUN)
  with pytest.raises(ValueError, match="expected"):
    writes.write(benchmark.samples[0], pixels)
  assert files_of(tmp_path / "out") == {}
