"""Records of evaluations: kept whole, told once, drawn anew."""

import json
import subprocess
import sys

import pytest

from goku_jax.data import video_io
from goku_jax.eval import results
from goku_jax.typing import UserError
from tests import runs

SETTINGS = {"bins": 4, "path": None, "every_steps": 0}


def figures(value):
  return {
    "loss": {"all": value},
    "by_t": {"all": {"t=0.5": value}},
    "name": "x",
  }


def test_records_are_read_as_they_were_added(tmp_path):
  with results.open_results(tmp_path / "evals") as log:
    log.add("losses", 5, "ema", SETTINGS, figures(2.0))
    log.add("losses", 10, "ema", SETTINGS, figures(1.0))
    log.add("losses", 10, "params", SETTINGS, figures(float("nan")))
    one, two, three = log.records()
  assert one["figures"] == {"loss.all": 2.0, "by_t.all.t=0.5": 2.0, "name": "x"}
  assert (two["step"], two["weights"], two["suite"]) == (10, "ema", "losses")
  assert three["figures"]["loss.all"] is None  # JSON has no other word
  assert one["command"].startswith("python ")
  assert one["devices"] == 8


def test_what_has_a_record_is_known_by_step_weights_and_settings(tmp_path):
  with results.open_results(tmp_path) as log:
    log.add("losses", 5, "ema", SETTINGS, figures(2.0))
    assert log.has("losses", 5, "ema", SETTINGS)
    assert not log.has("losses", 6, "ema", SETTINGS)
    assert not log.has("losses", 5, "params", SETTINGS)
    assert not log.has("digits", 5, "ema", SETTINGS)
    assert not log.has("losses", 5, "ema", SETTINGS | {"bins": 5})


def test_a_record_that_a_kill_cut_short_is_dropped_and_the_next_is_whole(
  tmp_path,
):
  with results.open_results(tmp_path) as log:
    log.add("losses", 5, "ema", SETTINGS, figures(2.0))
    with open(tmp_path / results.NAME, "a") as file:
      file.write('{"suite": "losses", "st')
    assert len(log.records()) == 1
    log.add("losses", 10, "ema", SETTINGS, figures(1.0))
    assert [record["step"] for record in log.records()] == [5, 10]
  lines = (tmp_path / results.NAME).read_text().splitlines()
  assert all(json.loads(line) for line in lines)


def test_the_best_step_has_the_least_figure_or_the_largest(tmp_path):
  with results.open_results(tmp_path) as log:
    for step, value in ((5, 2.0), (10, 1.0), (15, 3.0)):
      log.add("losses", step, "ema", SETTINGS, figures(value))
    assert log.best("losses.loss.all", "ema") == 10
    assert log.best("max:losses.loss.all", "ema") == 15
    # Others are passed over: of other weights, of other settings.
    log.add("losses", 20, "params", SETTINGS, figures(0.1))
    assert log.best("losses.loss.all", "ema") == 10
    log.add("losses", 25, "ema", SETTINGS | {"seed": 9}, figures(2.5))
    assert log.best("losses.loss.all", "ema") == 25
    with pytest.raises(
      UserError, match=r"has losses\.fid of ema: evaluate --su"
    ):
      log.best("losses.fid", "ema")
    with pytest.raises(UserError, match=r"losses\.name is no number but 'x'"):
      log.best("losses.name", "ema")


def test_a_damaged_record_is_one_line_and_a_bar_leaves_the_table_whole(
  tmp_path,
):
  with results.open_results(tmp_path) as log:
    log.add("losses", 5, "ema", SETTINGS, figures(2.0) | {"name": "a|b"})
    assert r"| a\|b |" in (tmp_path / "results.md").read_text()
  path = tmp_path / results.NAME
  path.write_text("{" + path.read_text() + path.read_text())
  with pytest.raises(UserError, match="line 1: not a JSON object"):
    results.Results(tmp_path).records()


def test_tables_and_curves_show_each_group_over_the_steps(tmp_path):
  with results.open_results(tmp_path) as log:
    for step in (5, 10):
      log.add("losses", step, "ema", SETTINGS, figures(10.0 / step))
    series = results.curves(log.records(), "losses")
  assert series["loss"] == {"all": {"ema": ((5, 10), (2.0, 1.0))}}
  assert series.keys() == {"loss"}  # bins lie deeper, and a name is no figure
  text = (tmp_path / "results.md").read_text()
  assert "| step | weights | loss.all | name |" in text
  assert "| 10 | ema | 1 | x |" in text
  picture, _ = video_io.read_video(tmp_path / "curves" / "losses.loss.png")
  assert picture.shape[1:3] == (260, 1000)  # one row of three panels
  assert picture[:, :, :330].std() > picture[:, :, 670:].std() == 0
  assert any((tmp_path / "tensorboard").iterdir())


def test_the_last_record_of_a_step_counts():
  record = dict(suite="s", weights="ema", step=1)
  records = [record | {"figures": {"a.b": value}} for value in (1.0, 2.0)]
  assert results.curves(records, "s") == {"a": {"b": {"ema": ((1,), (2.0,))}}}


def test_two_evaluations_do_not_share_a_folder(tmp_path):
  code = (
    "from goku_jax.eval import results; import sys\n"
    "with results.open_results(sys.argv[1]): pass"
  )
  with results.open_results(tmp_path):
    found = subprocess.run(
      [sys.executable, "-c", code, tmp_path],
      cwd=runs.ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
  assert found.returncode == 1
  assert "another evaluation writes to" in found.stderr
  with results.open_results(tmp_path):  # it is free again
    pass
