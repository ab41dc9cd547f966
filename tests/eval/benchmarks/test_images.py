"""The three benchmarks of images: their prompts, and the names they ask for."""

import json

import pytest

from goku_jax.eval.benchmarks import READERS, compbench, dpg, geneval
from goku_jax.typing import UserError

METADATA = [
  {"tag": "single_object", "include": [{"class": "b"}], "prompt": "a bench"},
  {"tag": "counting", "include": [], "exclude": [], "prompt": "two clocks"},
  {"tag": "single_object", "include": [{"class": "b"}], "prompt": "a bench"},
]


def write_lines(path, lines):
  path.write_text("".join(f"{line}\n" for line in lines))
  return path


def test_geneval_has_four_images_a_line_with_its_metadata(tmp_path):
  path = write_lines(tmp_path / "m.jsonl", map(json.dumps, METADATA))
  benchmark = geneval.read(path)
  assert len(benchmark.samples) == 12
  assert benchmark.protocol == 2212
  sample = benchmark.samples[7]
  assert sample.prompt == "two clocks"
  assert sample.path == "00001/samples/00003.png"
  assert sample.seed_index == 7
  assert sample.beside.path == "00001/metadata.jsonl"
  assert json.loads(sample.beside.text) == METADATA[1]


@pytest.mark.parametrize("line", ["", "[]", '{"prompt": "a cat"}', "a cat"])
def test_geneval_names_a_line_that_is_no_metadata(tmp_path, line):
  lines = [json.dumps(METADATA[0]), line, json.dumps(METADATA[1])]
  with pytest.raises(UserError, match="line 2: not GenEval's metadata"):
    geneval.read(write_lines(tmp_path / "m.jsonl", lines))


def test_dpg_has_four_parts_of_one_picture(tmp_path):
  for item in ("0", "COCOval3", "partiprompts12"):
    write_lines(tmp_path / f"{item}.txt", [f"the scene {item}"])
  (tmp_path / ".hidden.txt").write_text("x")
  benchmark = dpg.read(tmp_path)
  assert benchmark.protocol == 4260
  assert [(s.path, s.part, s.prompt) for s in benchmark.samples[4:8]] == [
    ("COCOval3.png", i, "the scene COCOval3") for i in range(4)
  ]
  assert [s.seed_index for s in benchmark.samples] == list(range(12))


def test_dpg_refuses_a_name_that_the_tool_would_cut(tmp_path):
  (tmp_path / "a.b.txt").write_text("a cat")
  with pytest.raises(UserError, match="first dot"):
    dpg.read(tmp_path)


def write_compbench(folder, lines):
  for category in compbench.CATEGORIES:
    write_lines(folder / f"{category}_val.txt", lines)


def test_compbench_counts_over_a_category(tmp_path):
  # A prompt twice, as it may be: its images have other numbers.
  write_compbench(
    tmp_path, ["a red bowl", "", "a clock reads 11:44. ", "a red bowl"]
  )
  benchmark = compbench.read(tmp_path)
  paths = [sample.path for sample in benchmark.samples]
  assert len(set(paths)) == 90
  assert benchmark.protocol == 9000
  assert paths[9] == "color/samples/a red bowl_000009.png"
  assert paths[10] == "color/samples/a clock reads 11:44._000010.png"
  assert paths[29] == "color/samples/a red bowl_000029.png"
  assert paths[30] == "shape/samples/a red bowl_000000.png"
  assert [s.seed_index for s in benchmark.samples] == list(range(90))


def test_compbench_refuses_what_its_tool_would_misread(tmp_path):
  write_compbench(tmp_path, ["a red_bowl"])
  with pytest.raises(UserError, match="a red_bowl"):
    compbench.read(tmp_path)
  write_compbench(tmp_path, ["a red/blue bowl"])
  with pytest.raises(UserError, match="cannot name a file"):
    compbench.read(tmp_path)


@pytest.mark.parametrize("name", sorted(set(READERS) - {"vbench"}))
def test_missing_prompts_are_named(tmp_path, name):
  with pytest.raises(UserError, match=str(tmp_path / "none")):
    READERS[name](tmp_path / "none")
