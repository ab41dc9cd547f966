"""The study trains, judges and goes on where it was killed."""

import signal
import time

import numpy as np
import pytest

from goku_jax import lines
from goku_jax.ablations import judge
from tests import runs

CONFIG = "--config=configs/ablations.py:debug"


@pytest.mark.slow
def test_real_digits_are_nearest_and_noise_is_far():
  asks = judge.ask(True, 40, 32, 1)
  videos, asked = asks._real(seed=2)
  real = asks.figures(videos, asked)
  noise = np.random.default_rng(0).integers(0, 256, (40, 1, 32, 32, 3))
  far = asks.figures(list(noise.astype(np.uint8)))
  assert real["digit_accuracy"] > 0.9
  assert real["frechet_distance"] < far["frechet_distance"] / 3
  assert far["digit_accuracy"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_study_goes_on_and_ends_as_one(tmp_path):
  flags = (CONFIG, "--config.parts=joint", "--config.seeds=1")
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  runs.run_job("ablations", *flags, f"--workdir={whole}")
  records = cut / "records.jsonl"
  job = runs.start_job("ablations", *flags, f"--workdir={cut}")
  while not (records.exists() and len(lines.read(records)) > 3):
    assert job.poll() is None
    time.sleep(0.2)
  job.send_signal(signal.SIGKILL)
  job.communicate()
  runs.run_job("ablations", *flags, f"--workdir={cut}")
  one, two = (
    [{**row, "figures": without_seconds(row)} for row in lines.read(path)]
    for path in (whole / "records.jsonl", records)
  )
  assert one == two
  assert "## Text-to-video with" in (cut / "report.md").read_text()


def without_seconds(row):
  return {k: v for k, v in row["figures"].items() if "seconds" not in k}


def test_another_config_is_refused(tmp_path):
  _, told = runs.run_job(
    "ablations",
    "--config=configs/digits.py:debug",
    f"--workdir={tmp_path}",
    status=2,
  )
  assert "config.stage='flow' compares nothing" in told
