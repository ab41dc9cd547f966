"""VBench's prompts, names and totals."""

import json
import zipfile

import pytest

from goku_jax.eval.benchmarks import vbench
from goku_jax.typing import UserError

# Table 7 and 8 of the paper, in percent.
GOKU = {
  "subject_consistency": 95.55,
  "background_consistency": 96.67,
  "temporal_flickering": 97.71,
  "motion_smoothness": 98.50,
  "dynamic_degree": 76.11,
  "aesthetic_quality": 67.22,
  "imaging_quality": 71.29,
  "object_class": 94.40,
  "multiple_objects": 79.48,
  "human_action": 97.60,
  "color": 83.81,
  "spatial_relationship": 85.72,
  "scene": 57.08,
  "appearance_style": 23.08,
  "temporal_style": 25.64,
  "overall_consistency": 27.35,
}
SHARES = {name: value / 100 for name, value in GOKU.items()}
PROMPTS = [
  {"prompt_en": "In a still frame, a sign", "dimension": [vbench.FLICKER]},
  {"prompt_en": "A quay, oil painting.", "dimension": ["appearance_style"]},
  {"prompt_en": "A rock-carved façade", "dimension": ["scene"]},
  {"prompt_en": "A quay, oil painting.", "dimension": ["imaging_quality"]},
  {"prompt_en": "In a still frame, a sign", "dimension": ["color"]},
]


def write_prompts(folder, prompts=PROMPTS):
  path = folder / vbench.NAME
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(prompts))
  return path


def test_the_wheel_asks_for_6220_videos_of_944_prompts(vbench_wheel):
  benchmark = vbench.read(vbench_wheel)
  paths = {sample.path for sample in benchmark.samples}
  assert len(benchmark.samples) == len(paths) == 6220 == benchmark.protocol
  assert len({sample.prompt for sample in benchmark.samples}) == 944
  assert sum(path.endswith("-24.mp4") for path in paths) == 75
  assert "In a still frame, a stop sign-24.mp4" in paths
  twice = "A beautiful coastal beach in spring, waves lapping on sand by"
  twice += " Hokusai, in the style of Ukiyo"
  assert f"{twice}-4.mp4" in paths
  assert f"{twice}-5.mp4" not in paths


def test_prompts_listed_twice_have_their_videos_once(tmp_path):
  benchmark = vbench.read(write_prompts(tmp_path))
  names = [sample.path for sample in benchmark.samples]
  assert names[24:30] == [
    "In a still frame, a sign-24.mp4",
    *(f"A quay, oil painting.-{i}.mp4" for i in range(5)),
  ]
  assert len(names) == 25 + 5 + 5
  assert [s.seed_index for s in benchmark.samples] == list(range(35))


def test_a_wheel_gives_what_its_file_gives(tmp_path):
  path = write_prompts(tmp_path)
  with zipfile.ZipFile(tmp_path / "vbench.whl", "w") as wheel:
    wheel.write(path, f"vbench/{vbench.NAME}")
  assert vbench.read(tmp_path / "vbench.whl") == vbench.read(path)


def test_the_installed_package_is_found_and_not_imported(tmp_path, monkeypatch):
  info = tmp_path / "vbench-0.1.5.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Name: vbench\nVersion: 0.1.5\n")
  path = write_prompts(tmp_path / "vbench")
  (tmp_path / "vbench" / "__init__.py").write_text("raise SystemExit")
  monkeypatch.syspath_prepend(str(tmp_path))
  assert vbench.read() == vbench.read(path)


def test_missing_prompts_say_where_they_are_had():
  with pytest.raises(UserError, match="pip install --no-deps vbench"):
    vbench.read()


@pytest.mark.parametrize(
  ("prompts", "message"),
  [
    ([{"prompt": "a cat"}], "not VBench's prompts"),
    ([{"prompt_en": "a cat", "dimension": ["fame"]}], "'fame'"),
    ([{"prompt_en": "a/cat", "dimension": ["scene"]}], "cannot name a file"),
    ([{"prompt_en": "c" * 250, "dimension": ["scene"]}], "too long"),
    ([{"prompt_en": " ", "dimension": ["scene"]}], "is empty"),
    ([], "there is no prompt"),
  ],
)
def test_other_files_are_refused(tmp_path, prompts, message):
  with pytest.raises(UserError, match=message):
    vbench.read(write_prompts(tmp_path, prompts))


def test_a_broken_wheel_and_a_missing_file_are_refused(tmp_path):
  (tmp_path / "vbench.whl").write_bytes(b"no archive")
  with pytest.raises(UserError, match=r"vbench\.whl: cannot read it"):
    vbench.read(tmp_path / "vbench.whl")
  with pytest.raises(UserError, match="No such file"):
    vbench.read(tmp_path / "none.json")


@pytest.mark.parametrize("as_tool", [True, False])
def test_the_published_row_of_goku_gives_its_published_totals(as_tool):
  results = {k: [v, []] if as_tool else v for k, v in SHARES.items()}
  found = vbench.fold(results)
  totals = [round(found[k], 2) for k in ("quality", "semantic", "total")]
  assert totals == [85.60, 81.87, 84.85]
  assert found["scene"] == pytest.approx(57.08)


def test_results_of_single_dimensions_are_put_together(tmp_path):
  for name, value in SHARES.items():
    path = tmp_path / f"{name}_eval_results.json"
    path.write_text(json.dumps({name: [value, [{"video_path": "a.mp4"}]]}))
    (tmp_path / f"{name}_full_info.json").write_text("[]")
  found = vbench.fold(vbench.read_results(tmp_path))
  assert found == vbench.fold(SHARES)
  (tmp_path / "z_eval_results.json").write_text('{"scene": [0.1, []]}')
  with pytest.raises(UserError, match="another score of scene"):
    vbench.read_results(tmp_path)


def test_a_missing_dimension_is_named():
  results = {k: v for k, v in SHARES.items() if k not in ("scene", "color")}
  with pytest.raises(UserError, match="evaluate color, scene too"):
    vbench.fold(results)


@pytest.mark.parametrize("bad", [95.5, None, [], float("nan"), "0.5", -0.1])
def test_a_score_that_is_no_share_is_refused(bad):
  with pytest.raises(UserError, match="from 0 to 1"):
    vbench.fold(SHARES | {"scene": bad})


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_results_of_another_form_are_refused(tmp_path, text):
  path = tmp_path / "results.json"
  path.write_text(text)
  with pytest.raises(UserError, match=r"results\.json: not"):
    vbench.read_results(path)
