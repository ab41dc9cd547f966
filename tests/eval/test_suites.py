"""Suites on checkpoints of real runs: restored, followed, on any devices."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from goku_jax import config
from goku_jax.eval import results, suites
from goku_jax.parallel import mesh as meshes
from goku_jax.sample import draw, restore
from goku_jax.train import loop
from goku_jax.typing import UserError
from tests import runs

LOSSES = dict(every_steps=0, path=None, num_samples=8, bins=2, seed=0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run of four steps with checkpoints at 2 and 4, judged inside at 4."""
  path = tmp_path_factory.mktemp("run")
  changes = dict(total_steps=4, save_every_steps=2, show_every_steps=100)
  loop.train(runs.read_config(**changes, evals__losses__every_steps=3), path)
  return path


@pytest.fixture
def mesh():
  return meshes.make_mesh(replica=1, fsdp=-1, sequence=1, tensor=1)


def judge(log, workdir, mesh, step, weights=("ema", "params"), **more):
  with meshes.use(mesh):
    return suites.judge(
      log,
      {"losses": LOSSES},
      workdir,
      step=step,
      weights=list(weights),
      mesh=mesh,
      out=log.folder,
      **more,
    )


def test_training_runs_its_evaluators_at_their_steps_and_at_the_end(workdir):
  log = results.Results(workdir / "evals" / "in_training")
  found = [(r["suite"], r["step"], r["weights"]) for r in log.records()]
  assert found == [
    ("losses", step, kind) for step in (3, 4) for kind in ("params", "ema")
  ]


def test_what_training_found_is_found_again_from_the_checkpoint(
  workdir, tmp_path, mesh
):
  inside = results.Results(workdir / "evals" / "in_training").records()
  wanted = {r["weights"]: r["figures"] for r in inside if r["step"] == 4}
  settings = config.load_config(workdir, "flow").evals.losses.to_dict()
  with results.open_results(tmp_path) as log, meshes.use(mesh):
    found = suites.judge(
      log,
      {"losses": settings},
      workdir,
      step=None,
      weights=["ema", "params"],
      mesh=mesh,
      out=tmp_path,
    )["losses"]
  for kind, figures in found.items():
    for name, value in config.flatten(figures).items():
      assert value == pytest.approx(wanted[kind][name], rel=1e-5), name


def test_what_has_a_record_is_not_judged_again_unless_asked(
  workdir, tmp_path, mesh
):
  with results.open_results(tmp_path) as log:
    assert judge(log, workdir, mesh, 2, again=False)
    assert not judge(log, workdir, mesh, 2, again=False)
    assert len(log.records()) == 2
    assert judge(log, workdir, mesh, 2)["losses"].keys() == {"ema", "params"}


def test_the_files_of_one_kind_of_weights_do_not_replace_the_others(
  monkeypatch, workdir, tmp_path, mesh
):
  seen = []
  suite = lambda run, out, *_: seen.append(out) or {}
  monkeypatch.setitem(suites.SUITES, "losses", suite)
  with results.open_results(tmp_path) as log:
    judge(log, workdir, mesh, 2)
    judge(log, workdir, mesh, 2, weights=["params"])
  assert seen == [tmp_path / "ema", tmp_path / "params", tmp_path]


def test_following_gives_each_whole_checkpoint_once_and_ends(workdir):
  done = set()
  for step in suites.follow(workdir, 4, done.__contains__):
    done.add(step)
  assert done == {2, 4}


def test_a_step_that_is_half_written_does_not_come(workdir, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy)
  (copy / "checkpoints" / "2" / "manifest.json").unlink()
  (copy / "checkpoints" / "3").mkdir()
  done = set()
  for step in suites.follow(copy, 4, done.__contains__):
    done.add(step)
  assert done == {4}
  assert not suites.is_there(copy, 2)


def test_the_same_samples_come_on_one_device_and_on_all(workdir, mesh):
  settings = dict(
    num_frames=5, num_steps=2, guidance_scale=2.0, shift=3.0, seed=0
  )
  captions = ["the digit one moves left", "the digit two stays still"]
  one = restore.restore(workdir)
  alone = draw.draw(one, captions, **settings)
  with meshes.use(mesh):
    shared = restore.restore(workdir, mesh=mesh)
    assert shared.ranks == 8
    placed = jax.tree.leaves(shared.params)
    assert {len(x.sharding.device_set) for x in placed} == {8}
    together = draw.draw(shared, captions, **settings)
  for a, b in zip(alone, together, strict=True):
    assert np.abs(a.astype(int) - b).max() <= 1  # of 255, by rounding


def test_the_step_is_a_number_the_latest_or_the_best(tmp_path):
  with results.open_results(tmp_path) as log:
    for step, loss in ((2, 1.0), (4, 2.0)):
      figures = {"loss": {"all": loss}}
      log.add("losses", step, "ema", LOSSES, figures)
    assert suites.read_step("7", log, "losses.loss.all") == 7
    assert suites.read_step("latest", log, "losses.loss.all") is None
    assert suites.read_step("best", log, "losses.loss.all") == 2
    with pytest.raises(UserError, match="--step=old: give a number, latest or"):
      suites.read_step("old", log, "losses.loss.all")


def test_a_benchmark_is_drawn_once_goes_on_and_is_whole(workdir, tmp_path):
  prompts = tmp_path / "evaluation_metadata.jsonl"
  rows = [
    {"tag": "single_object", "include": [], "prompt": f"the digit {word}"}
    for word in ("one", "two")
  ]
  prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = config.read_config(f"{runs.ROOT}/configs/benchmarks.py").evals
  settings = settings.geneval.to_dict() | dict(
    prompts=str(prompts), num_steps=1
  )
  run = restore.restore(workdir)
  found = suites.run_suite("geneval", run, tmp_path, settings)
  assert (found["num_samples"], found["problems"]) == ("8 of 2212", 0)
  pictures = sorted((tmp_path / "geneval").glob("*/samples/*.png"))
  assert len(pictures) == 8
  before = {path: path.read_bytes() for path in pictures}
  pictures[3].unlink()
  times = {path: path.stat().st_mtime_ns for path in pictures if path.exists()}
  suites.run_suite("geneval", run, tmp_path, settings)
  assert {p: p.read_bytes() for p in pictures} == before
  assert all(path.stat().st_mtime_ns == t for path, t in times.items())
  kept = json.loads(pathlib.Path(tmp_path, "geneval.made/run.json").read_text())
  assert kept["step"] == 4
