"""What the tables say follows from the records."""

import math

import pytest

from goku_jax.ablations import report


def record(arm, seed, step, solver, calls, distance, **more):
  figures = {"frechet_distance": distance, "seconds_a_step": 0.5, **more}
  place = dict(part="images", arm=arm, seed=seed, step=step)
  return place | dict(solver=solver, calls=calls, figures=figures)


@pytest.fixture
def records():
  """Distances that halve every 100 steps, of one arm from half as far on."""
  found = []
  for arm, start, spread in (("a", 8.0, 0.0), ("b", 4.0, 0.5)):
    for seed, sign in ((0, -1), (1, 1)):
      for step in (100, 200, 300):
        value = start / 2 ** (step / 100) + sign * spread
        more = dict(seconds_a_sample=1.0 + seed)
        found.append(record(arm, seed, step, "euler", 50, value, **more))
      for calls in (1, 10, 100):
        more = dict(seconds_a_sample=calls / 50)
        value = start / 8 * (1 + 9 / calls)
        found.append(record(arm, seed, 300, "heun", calls, value, **more))
  for name, value in (("real", 0.01), ("reconstructed", 0.02)):
    found.append(record(name, 0, 0, "", 0, value))
  return found


def cells(lines):
  return [[c.strip() for c in line.strip("|").split("|")] for line in lines]


def test_steps_and_calls_to_a_common_distance(records):
  """The worst ends at 1 after 300 steps; the other is there after 200."""
  part = report.Part(records)
  (_, *head), _, a, b = cells(part.until())
  assert head == ["steps", "seconds of training", "calls", "seconds a sample"]
  assert a[:3] == ["a", "300", "150"]
  assert b[:3] == ["b", "200", "100"]
  assert a[3:] == ["50", "1"]  # heun needs more than 100 for it
  assert b[3:] == ["10", "0.2"]


def test_between_checkpoints_distances_fall_evenly_in_the_logarithm(records):
  part = report.Part(records)
  assert part._steps_to("a", 4 / math.sqrt(2)) == pytest.approx(150)
  assert math.isnan(part._steps_to("a", 0.1))


def test_a_cell_is_mean_and_deviation_over_seeds(records):
  last = cells(report.Part(records).last())
  assert last[0][0] == "step 300, 50 calls, 2 seeds"
  assert last[2][:2] == ["a", "1 ± 0"]
  assert last[3][:2] == ["b", "0.5 ± 0.71"]
  assert last[4][:2] == ["real digits", "0.01"]


def test_the_page_has_a_picture_of_each_part(records, tmp_path):
  report.write(records, tmp_path)
  page = (tmp_path / "report.md").read_text()
  assert page.count("## ") == 1
  assert "![Flow and diffusion, images by class" in page
  picture = tmp_path / "pictures" / "ablation_images.png"
  assert picture.read_bytes().startswith(b"\x89PNG")
