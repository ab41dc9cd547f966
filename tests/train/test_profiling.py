"""Traces of steps are written, and training is as without them."""

import gzip

import pytest

from goku_jax.train import loop, profiling
from goku_jax.typing import UserError
from tests import runs

# Ended by the run's end, and by the steps' own.
CASES = {"to the end": (2, 9), "in between": (1, 1)}


@pytest.mark.parametrize(
  "name", [pytest.param("to the end", marks=pytest.mark.slow), "in between"]
)
def test_steps_are_traced_and_memory_is_written(tmp_path, name):
  start, steps = CASES[name]
  config = runs.read_config(
    total_steps=4, profile__start=start, profile__steps=steps
  )
  loop.train(config, tmp_path)
  folder = tmp_path / "profile" / "0000"
  (trace,) = folder.glob("plugins/profile/*/*.xplane.pb")
  assert b"train_step" in trace.read_bytes()
  if name == "in between":
    with gzip.open(folder / "memory.prof") as file:
      assert b"train/loop.py" in file.read()  # where its arrays were made


def test_a_run_that_is_not_traced_writes_nothing(tmp_path):
  with profiling.Profile(tmp_path, start=3) as profile:
    profile.at(3, ())
  assert not any(tmp_path.iterdir())


def test_a_negative_number_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"profile.steps=-1: set 0 or more"):
    profiling.Profile(tmp_path, steps=-1)
