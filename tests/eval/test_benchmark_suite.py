"""Benchmarks by the models of real runs: whole, resumed, and never mixed."""

import json
import signal
import time
import zipfile

import pytest
from PIL import Image

from goku_jax import config
from goku_jax.data import video_io
from goku_jax.eval import results, suites
from goku_jax.eval.benchmarks import READERS, layout, vbench
from goku_jax.sample import restore
from goku_jax.sample.codec import Codec
from goku_jax.typing import UserError
from tests import runs

COUNTS = {"vbench": 30, "geneval": 8, "dpg": 2, "compbench": 30}  # of files
GENEVAL = ("the digit one", "the digit two")


@pytest.fixture(scope="module")
def run(flow_run):
  return restore.restore(flow_run)


def write_geneval(folder, prompts=GENEVAL):
  path = folder / "evaluation_metadata.jsonl"
  rows = ({"tag": "counting", "include": [], "prompt": p} for p in prompts)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def write_prompts(name, folder, wheel):
  """A few prompts of a benchmark, as its tool has them."""
  folder.mkdir()
  if name == "vbench":
    with zipfile.ZipFile(wheel) as archive:
      entries = json.loads(archive.read(f"vbench/{vbench.NAME}"))
    few = ("In a still frame, a stop sign", "a red bicycle")
    entries = [entry for entry in entries if entry["prompt_en"] in few]
    (folder / vbench.NAME).write_text(json.dumps(entries))
    return folder / vbench.NAME
  if name == "geneval":
    return write_geneval(folder)
  if name == "dpg":
    (folder / "COCOval1.txt").write_text("a table, and on it two cups")
    (folder / "partiprompts2.txt").write_text("ein Café bei Nacht")
    return folder
  for category in ("color", "shape", "texture"):
    (folder / f"{category}_val.txt").write_text(f"a thing of one {category}\n")
  return folder


def read_settings(name, prompts):
  """Those of the example, in one step."""
  evals = config.read_config(f"{runs.ROOT}/configs/benchmarks.py").evals
  few = dict(prompts=str(prompts), num_steps=1, guidance_scale=1.0)
  if name == "vbench":
    few |= dict(num_frames=5, fps=12)
  return evals[name].to_dict() | few


def files_of(folder):
  paths = (path for path in folder.rglob("*") if path.is_file())
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def times_of(folder):
  """When each sample was written."""
  paths = (p for p in folder.rglob("*") if p.suffix in (".png", ".mp4"))
  return {path: path.stat().st_mtime_ns for path in paths}


def refused(name, run, out, settings, match):
  """The suite refuses, and leaves no file in the folder of samples."""
  before = files_of(out)
  with pytest.raises(UserError, match=match):
    suites.run_suite(name, run, out, settings)
  assert files_of(out) == before


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (COUNTS[name] > 8))
    for name in sorted(READERS)
  ],
)
def test_a_benchmark_that_was_stopped_goes_on_to_the_same_files(
  run, tmp_path, vbench_wheel, name
):
  prompts = write_prompts(name, tmp_path / "prompts", vbench_wheel)
  settings = read_settings(name, prompts)
  found = suites.run_suite(name, run, tmp_path, settings)
  folder, beside = tmp_path / name, tmp_path / f"{name}.made"
  benchmark = READERS[name](prompts)
  count = f"{len(benchmark.samples)} of {benchmark.protocol}"
  assert (found["num_samples"], found["problems"]) == (count, 0)
  whole = files_of(folder)
  pictures = [path for path in whole if not path.endswith(".jsonl")]
  assert len(pictures) == COUNTS[name]

  # As a kill leaves it: one file missing, one begun, a line that is cut.
  (folder / pictures[1]).unlink()
  times = times_of(folder)
  (beside / "partial").mkdir()
  (beside / "partial" / "x.png").write_bytes(whole[pictures[1]][:99])
  with (beside / "samples.jsonl").open("a") as file:
    file.write('{"prompt": "a ca')
  assert layout.check(folder, benchmark) == [f"missing: {pictures[1]}"]
  found = suites.run_suite(name, run, tmp_path, settings)
  assert found["problems"] == 0
  assert files_of(folder) == whole
  assert times.items() <= times_of(folder).items()
  assert set(files_of(beside)) == {"run.json", "samples.jsonl"}


def test_videos_and_grids_are_as_their_tools_cut_them(
  run, tmp_path, vbench_wheel
):
  path = write_prompts("vbench", tmp_path / "videos", vbench_wheel)
  suites.run_suite("vbench", run, tmp_path, read_settings("vbench", path))
  name = "In a still frame, a stop sign-24.mp4"
  assert video_io.probe(tmp_path / "vbench" / name) == (5, 16, 16, 12.0)
  path = write_prompts("dpg", tmp_path / "grids", vbench_wheel)
  suites.run_suite("dpg", run, tmp_path, read_settings("dpg", path))
  with Image.open(tmp_path / "dpg" / "COCOval1.png") as image:
    assert image.size == (32, 32)


def test_samples_of_other_weights_or_another_checkpoint_are_refused(
  flow_run, run, tmp_path
):
  settings = read_settings("geneval", write_geneval(tmp_path))
  suites.run_suite("geneval", run, tmp_path, settings)
  raw = restore.restore(flow_run, weights="params")
  refused("geneval", raw, tmp_path, settings, r"another run \(weights\)")
  other = run._replace(digest=64 * "0")
  refused("geneval", other, tmp_path, settings, r"another run \(checkpoint\)")
  suites.run_suite("geneval", run, tmp_path, settings)  # goes on


def test_samples_of_other_prompts_are_refused_wherever_the_same_lie(
  run, tmp_path
):
  settings = read_settings("geneval", write_geneval(tmp_path))
  suites.run_suite("geneval", run, tmp_path, settings)
  write_geneval(tmp_path, ("the digit six", "the digit two"))
  refused("geneval", run, tmp_path, settings, r"another run \(prompts\)")
  (tmp_path / "moved").mkdir()
  settings["prompts"] = str(write_geneval(tmp_path / "moved"))
  suites.run_suite("geneval", run, tmp_path, settings)


def test_a_prompt_that_is_too_long_is_refused_before_any_is_drawn(
  run, tmp_path
):
  prompts = ["the digit one"] * 40 + ["a word " * 30]
  path = write_geneval(tmp_path, prompts)
  settings = read_settings("geneval", path)
  refused("geneval", run, tmp_path, settings, "'a word .* tokens and this")
  write_geneval(tmp_path)
  longer = tmp_path / "rewritten.jsonl"
  rows = ({"prompt": p, "rewritten": f"{p} of r{150 * 'e'}d"} for p in GENEVAL)
  longer.write_text("\n".join(map(json.dumps, rows)))
  settings["rewrite"]["file"] = str(longer)
  refused("geneval", run, tmp_path, settings, "'the digit one of ree.* tokens")


@pytest.mark.parametrize("condition", ["class", "both"])
def test_a_model_of_classes_is_not_judged(run, tmp_path, condition):
  spec = f"{runs.ROOT}/configs/digits.py:debug,condition={condition}"
  model = restore.make_model(config.read_config(spec), Codec())
  settings = read_settings("geneval", write_geneval(tmp_path))
  with_classes = run._replace(model=model)
  refused("geneval", with_classes, tmp_path, settings, "models of text alone")


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("geneval", {"num_step": 4}, "num_step'; did you mean num_steps"),
    ("geneval", {"rewrite": {"file": None}}, "rewrite lacks endpoint, "),
    ("geneval", {"rewrite": None}, "rewrite lacks endpoint, file, "),
    ("geneval", {"prompts": None}, "set evals.geneval.prompts"),
    ("geneval", {"num_frames": 5}, "is of images, set 1"),
    ("geneval", {"fps": 8}, "is of images, leave it out"),
    ("geneval", {"size": (16,)}, "size.*height and width"),
    ("geneval", {"size": (16, 18)}, "width=18 is not a multiple"),
    ("geneval", {"num_steps": 0}, "num_steps=0"),
    ("dpg", {"size": (16, 32)}, "square images, not 16 x 32"),
    ("vbench", {"num_frames": 1}, "is of videos, set more"),
    ("vbench", {"fps": 0}, "fps=0"),
  ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
  run, tmp_path, vbench_wheel, name, changes, message
):
  prompts = write_prompts(name, tmp_path / "prompts", vbench_wheel)
  settings = read_settings(name, prompts) | changes
  refused(name, run, tmp_path, settings, message)


def test_a_setting_that_is_missing_is_named(run, tmp_path):
  settings = read_settings("geneval", write_geneval(tmp_path))
  del settings["shift"], settings["rewrite"]
  refused("geneval", run, tmp_path, settings, "evals.geneval lacks rewrite, sh")


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_where_it_was(flow_run, tmp_path):
  prompts = write_geneval(tmp_path, [f"the digit one {i}" for i in range(40)])
  arguments = (
    f"--flow_run={flow_run}",
    "--suite=geneval",
    f"--out={tmp_path / 'out'}",
    f"--config={runs.ROOT}/configs/benchmarks.py",
    f"--config.evals.geneval.prompts={prompts}",
    "--config.evals.geneval.num_steps=1",
  )
  folder = tmp_path / "out"
  with runs.start_job("eval", *arguments) as process:
    while not list(folder.rglob("*.png")) and process.poll() is None:
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
  there = {k: v for k, v in files_of(folder).items() if k.endswith(".png")}
  assert 0 < len(there) < 160
  runs.run_job("eval", *arguments)
  (record,) = results.Results(folder).records()
  assert record["figures"]["problems"] == 0
  after = files_of(folder)
  assert len([path for path in after if path.endswith(".png")]) == 160
  assert {path: after[path] for path in there} == there
