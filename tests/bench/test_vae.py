"""The bench runs, and its figures hold together."""

import json

import pytest

from goku_jax.bench import vae
from goku_jax.typing import UserError
from tests import runs


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_are_measured_and_agree(tmp_path):
  small = ["--size=16", "--num_frames=9", "--width=32", "--rounds=1"]
  small += ["--memory_frames=5", f"--json={tmp_path}/found.json"]
  runs.run_job("bench", "--suite=vae", *small)
  found = json.loads((tmp_path / "found.json").read_text())
  for method in ("encode", "decode"):
    ours, theirs = (
      found[f"{side}_{method}_seconds"] for side in ("ours", "diffusers")
    )
    assert found[f"{method}_ratio"] == pytest.approx(theirs / ours)
    assert found[f"{method}_difference"] < 1e-4
    assert found[f"ours_{method}_peak_gib"] > 0.05  # of 13 M parameters
  memory = found["memory"]
  assert memory.keys() == {"stream_5_frames_gib", "whole_5_frames_gib"}


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--suite=vea"], "--suite=vea is not one of vae, conv"),
    (["--suite=vae", "--memory_frames=18"], "--memory_frames=18: set lengths"),
  ],
)
def test_a_mistake_is_one_line(flags, says):
  _, err = runs.run_job("bench", *flags, status=2)
  (line,) = err.splitlines()
  assert says in line


def test_a_clip_that_diffusers_decodes_in_part_is_refused():
  with pytest.raises(UserError, match=r"--num_frames=5: set 8k\+1"):
    vae.compare(1, (5, 16, 16), 32, "float32")
