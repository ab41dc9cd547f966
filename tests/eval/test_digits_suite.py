"""The suite asks for every pair, and its files say what it returns."""

import functools
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from goku_jax import job
from goku_jax.data import digits as data
from goku_jax.data import video_io
from goku_jax.eval import digits, digits_suite
from goku_jax.models import goku
from goku_jax.sample import restore
from goku_jax.sample.codec import Codec
from tests import runs

SAMPLING = dict(num_steps=1, guidance_scale=1.0, shift=1.0)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  """The suite in small, on the pixels of a model that was never trained."""
  out = tmp_path_factory.mktemp("report")
  model, params = runs.flow_model()
  run = restore.Restored(runs.read_config(), model, params, Codec(), 7)
  with pytest.MonkeyPatch.context() as patch:
    for name in ("NUM_HELD_OUT", "NUM_REAL", "NUM_UNTRAINED"):
      patch.setattr(digits_suite, name, 3)
    train_judge = functools.partial(digits.train_judge, num_steps=3)
    patch.setattr(digits, "train_judge", train_judge)
    train_on = functools.partial(digits.train_on, num_steps=3)  # of CAS
    patch.setattr(digits, "train_on", train_on)
    result = digits_suite.run(
      run, out, num_videos=4, seed=0, started=time.time() - 1000, **SAMPLING
    )
  return out, result


def run_with_classes(**sizes):
  model = goku.make_goku(
    "debug", num_classes=10, latent_channels=3, patch_size=runs.PATCH, **sizes
  )
  return restore.Restored(runs.read_config(), model, None, Codec(), 7)


def test_a_model_with_classes_is_given_the_digit(monkeypatch, tmp_path):
  class DrawnError(Exception):
    pass

  def draw(run, captions, *, labels, **_):
    words = [data.WORDS[label] for label in labels]
    assert all(map(str.__contains__, captions, words))
    raise DrawnError

  monkeypatch.setattr(digits_suite.draw, "draw", draw)
  train_judge = functools.partial(digits.train_judge, num_steps=1)
  monkeypatch.setattr(digits, "train_judge", train_judge)
  run = run_with_classes(text=dict(width=32, depth=1, num_heads=2))
  more = dict(num_videos=4, seed=0, started=0.0)
  with pytest.raises(DrawnError):
    digits_suite.run(run, tmp_path, **more, **SAMPLING)
  with pytest.raises(job.UserError, match="this model reads no text"):
    digits_suite.run(run_with_classes(), tmp_path, **more, **SAMPLING)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(num_videos=1), "evals.digits.num_videos=1: set 2 or more"),
    (dict(num_steps=0), "evals.digits: num_steps=0: set 1 or more"),
    (dict(seed=-1), "evals.digits: seed=-1: set 0 or more"),
    (dict(shift=None), "evals.digits: shift missing or unknown; its settings"),
    (dict(solver="heun"), "evals.digits: solver missing or unknown; its"),
  ],
)
def test_a_bad_setting_is_told_before_any_work(
  monkeypatch, tmp_path, changes, says
):
  monkeypatch.delattr(digits, "train_judge")  # the first work there is
  settings = dict(num_videos=4, seed=0) | SAMPLING | changes
  settings = {k: v for k, v in settings.items() if v is not None}
  run = run_with_classes(text=dict(width=32, depth=1, num_heads=2))
  with pytest.raises(job.UserError, match=says):
    digits_suite.run(run, tmp_path, started=0.0, **settings)


def test_the_first_process_alone_writes(monkeypatch, tmp_path):
  found = dict.fromkeys(digits.ROWS, digits_suite.real_samples(3, 5, 16))
  with monkeypatch.context() as patch:
    patch.setattr(jax, "process_index", lambda: 1)
    digits_suite.write(tmp_path, found, {})
    assert not list(tmp_path.iterdir())
  digits_suite.write(tmp_path, found, {})
  names = {"contact_sheet.png", "report.json", "report.md", "samples"}
  assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("pairs", ["train", "held_out"])
def test_every_pair_is_asked_for_in_turn_at_every_speed(pairs):
  wanted = data.PAIRS[pairs]
  asked = digits_suite.requests(3 * len(wanted), pairs)
  assert [a[1:3] for a in asked] == 3 * list(wanted)
  for digit, direction in wanted:
    speeds = [a[3] for a in asked if a[1:3] == (digit, direction)]
    spoken = {s for s in speeds if not np.isnan(s)}
    still = direction == data.STILL
    assert spoken == (set() if still else set(data.SPEEDS))
    assert np.isnan(speeds).sum() == (3 if still else 1)
  for caption, digit, direction, speed in asked:
    spoken = None if np.isnan(speed) else speed
    assert caption == data.prompt(digit, direction, spoken)


def test_the_files_agree_with_the_result(report):
  out, result = report
  assert json.loads((out / "report.json").read_text()) == result
  page = (out / "report.md").read_text()
  rows = [name for name in digits.ROWS if name != "image_to_video"]
  assert all(digits.ROWS[name] in page for name in rows)
  assert "not measured" not in page
  numbers = [result[name]["num_videos"] for name in rows]
  assert numbers == [4, 3, 3, 3, 3]
  assert (out / "contact_sheet.png").stat().st_size
  assert 1000 < result["seconds"] < 1300  # what came before is in


def test_samples_are_the_clips_that_were_asked_for(report):
  files = sorted((report[0] / "samples").glob("*.mp4"))
  captions = [a[0] for a in digits_suite.requests(4, "train")]
  assert [f.stem for f in files] == sorted(
    caption.replace(" ", "_") for caption in captions
  )
  for file in files:
    video, fps = video_io.read_video(file)
    assert (video.shape, fps) == ((5, 128, 128, 3), 8)


@pytest.mark.parametrize(
  ("args", "says"),
  [
    (["--suite=letters"], "--suite=letters is not one of losses, digits"),
    ([], "config.json has no evals.digits: give --config=FILE.py"),
    (["--config=configs/digits.py:stage=vae"], "--config has no evals.digits"),
    (["--config.evals.digits.seed=1"], "needs --config=FILE.py"),
    (["--num_videos=3"], "unknown flag --num_videos"),
  ],
)
def test_a_mistake_is_one_line(tmp_path, args, says):
  old = runs.read_config().to_dict()
  del old["evals"]  # a run of an older version
  job.write_json(tmp_path / "config.json", old)
  done = subprocess.run(
    [sys.executable, "-m", "goku_jax.eval", f"--workdir={tmp_path}", *args],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert says in done.stderr
  assert done.stderr.count("\n") == 1
