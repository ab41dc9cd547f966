"""Suites on checkpoints of real runs: restored, followed, on any devices."""

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

LOSSES = dict(every_steps=0, path=None, num_samples=8, bins=2, seed=0)


@pytest.fixture
def mesh():
  return meshes.make_mesh(replica=1, fsdp=-1, sequence=1, tensor=1)


def judge(log, flow_run, mesh, step, weights=("ema", "params"), **more):
  with meshes.use(mesh):
    return suites.judge(
      log,
      {"losses": LOSSES},
      flow_run,
      step=step,
      weights=list(weights),
      mesh=mesh,
      out=log.folder,
      **more,
    )


def test_training_runs_its_evaluators_at_their_steps_and_at_the_end(flow_run):
  log = results.Results(flow_run / "evals" / "in_training")
  found = [(r["suite"], r["step"], r["weights"]) for r in log.records()]
  assert found == [
    ("losses", step, kind) for step in (3, 4) for kind in ("params", "ema")
  ]


def test_what_training_found_is_found_again_from_the_checkpoint(
  flow_run, tmp_path, mesh
):
  inside = results.Results(flow_run / "evals" / "in_training").records()
  wanted = {r["weights"]: r["figures"] for r in inside if r["step"] == 4}
  settings = config.load_config(flow_run, "flow").evals.losses.to_dict()
  with results.open_results(tmp_path) as log, meshes.use(mesh):
    found = suites.judge(
      log,
      {"losses": settings},
      flow_run,
      step=None,
      weights=["ema", "params"],
      mesh=mesh,
      out=tmp_path,
    )["losses"]
  for kind, figures in found.items():
    for name, value in config.flatten(figures).items():
      assert value == pytest.approx(wanted[kind][name], rel=1e-5), name


def test_what_a_kill_took_of_the_last_evaluation_comes_back(flow_run, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(flow_run, copy)
  log = results.Results(copy / "evals" / "in_training")
  whole = log.records()
  path = log.folder / results.NAME
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
  loop.train(config.load_config(copy, "flow"), copy)
  found = log.records()
  assert [r["figures"] for r in found] == [r["figures"] for r in whole]
  assert (copy / "evals" / "report.html").stat().st_size


def test_what_has_a_record_is_not_judged_again_unless_asked(
  flow_run, tmp_path, mesh
):
  with results.open_results(tmp_path) as log:
    assert judge(log, flow_run, mesh, 2, again=False)
    assert not judge(log, flow_run, mesh, 2, again=False)
    assert len(log.records()) == 2
    assert judge(log, flow_run, mesh, 2)["losses"].keys() == {"ema", "params"}


def test_a_damaged_newest_step_gives_way_to_the_one_before(
  flow_run, tmp_path, mesh
):
  copy = tmp_path / "run"
  shutil.copytree(flow_run, copy)
  path = copy / "checkpoints" / "4" / "ema" / "_METADATA"
  path.write_bytes(path.read_bytes()[::-1])  # of the same size
  with results.open_results(tmp_path) as log:
    judge(log, copy, mesh, None, weights=["ema"])
    assert [record["step"] for record in log.records()] == [2]


def test_the_files_of_one_kind_of_weights_do_not_replace_the_others(
  monkeypatch, flow_run, tmp_path, mesh
):
  seen = []
  suite = lambda run, out, *_: seen.append(out) or {}
  monkeypatch.setitem(suites.SUITES, "losses", suite)
  with results.open_results(tmp_path) as log:
    judge(log, flow_run, mesh, 2)
    judge(log, flow_run, mesh, 2, weights=["params"])
  assert seen == [tmp_path / "ema", tmp_path / "params", tmp_path]


def test_following_gives_each_whole_checkpoint_once_and_ends(flow_run):
  done = set()
  for step in suites.follow(flow_run, 4, done.__contains__):
    done.add(step)
  assert done == {2, 4}


def test_a_step_that_is_half_written_does_not_come(flow_run, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(flow_run, copy)
  (copy / "checkpoints" / "2" / "manifest.json").unlink()
  (copy / "checkpoints" / "3").mkdir()
  done = set()
  for step in suites.follow(copy, 4, done.__contains__):
    done.add(step)
  assert done == {4}
  assert not suites.is_there(copy, 2)


def test_the_same_samples_come_on_one_device_and_on_all(flow_run, mesh):
  settings = dict(
    num_frames=5, num_steps=2, guidance_scale=2.0, shift=3.0, seed=0
  )
  captions = ["the digit one moves left", "the digit two stays still"]
  one = restore.restore(flow_run)
  alone = draw.draw(one, captions, **settings)
  with meshes.use(mesh):
    shared = restore.restore(flow_run, mesh=mesh)
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
    assert suites.read_step("7", log, "losses.loss.all", "ema") == 7
    assert suites.read_step("latest", log, "losses.loss.all", "ema") is None
    assert suites.read_step("best", log, "losses.loss.all", "ema") == 2
    with pytest.raises(UserError, match="--step=old: give a number, latest or"):
      suites.read_step("old", log, "losses.loss.all", "ema")
