"""Tables and pictures of what was found: means and deviations over seeds.

A distance is the Frechet distance of the judge's features.
"""

import collections
import io
import math
import pathlib

import numpy as np

from goku_jax import files
from goku_jax.ablations.study import FLOORS

TITLES = {
  "images": "Flow and diffusion, images by class (Table 2)",
  "clips": "Flow and diffusion, images and clips by captions",
  "joint": "Text-to-video with and without images (Figure 5b)",
  "sizes": "Widths at equal samples (Figure 5a)",
  "positions": "Positions at a change of resolution (section 2.2)",
}
DISTANCE = "frechet_distance"
COLUMNS = {
  DISTANCE: "distance",
  "kernel_distance": "kernel distance",
  "joint_distance": "joint distance",
  "digit_accuracy": "digit",
  "direction_accuracy": "direction",
}


def write(records: list[dict], workdir):
  """Writes report.md and pictures/."""
  folder = pathlib.Path(workdir)
  page = []
  for part, title in TITLES.items():
    rows = [row for row in records if row["part"] == part]
    if not any(row["arm"] not in FLOORS for row in rows):
      continue
    found = Part(rows)
    page += [f"## {title}", "", *found.last(), "", *found.by_step(), ""]
    if found.has_sweep:
      page += [*found.by_calls(), "", *found.until(), ""]
    found.draw(folder / "pictures" / f"ablation_{part}.png")
    page += [f"![{title}](pictures/ablation_{part}.png)", ""]
  files.write_whole(folder / "report.md", "\n".join(page).encode())


class Part:
  """The records of a part, by what they are of."""

  def __init__(self, rows: list[dict]):
    self.values = collections.defaultdict(list)  # figure of each seed
    for row in rows:
      for name, value in row["figures"].items():
        key = row["arm"], row["step"], row["solver"], row["calls"], name
        if value is not None:
          self.values[key].append(value)
    made = [row for row in rows if row["arm"] not in FLOORS]
    unique = lambda items: list(dict.fromkeys(items))
    self.arms = unique(row["arm"] for row in made)
    self.steps = sorted({row["step"] for row in made})
    self.seeds = len({row["seed"] for row in made})
    self.usual = {}  # solver and calls of all checkpoints
    for row in made:
      self.usual.setdefault(row["arm"], (row["solver"], row["calls"]))
    self.solvers = unique((row["arm"], row["solver"]) for row in made)
    self.calls = sorted({row["calls"] for row in made})
    self.has_sweep = len(self.calls) > 1

  def at(self, arm, step, name, solver=None, calls=None) -> list[float]:
    """A figure of each seed, as checkpoints are sampled by default."""
    usual = self.usual.get(arm, ("", 0))
    solver, calls = solver or usual[0], calls or usual[1]
    return self.values.get((arm, step, solver, calls, name), [])

  def mean(self, *key) -> float:
    values = self.at(*key)
    return float(np.mean(values)) if values else math.nan

  def last(self):
    """All figures of the last checkpoint, beside those of real samples."""
    step = self.steps[-1]
    names = [n for n in COLUMNS if self.at(self.arms[0], step, n)]
    rows = [
      [arm, *(_cell(self.at(arm, step, n)) for n in names)] for arm in self.arms
    ]
    for arm, told in zip(
      FLOORS, ("real digits", "the same, decoded"), strict=True
    ):
      if self.at(arm, 0, DISTANCE):
        rows.append([told, *(_cell(self.at(arm, 0, n)) for n in names)])
    _, calls = self.usual[self.arms[0]]
    head = [f"step {step}, {calls} calls, {self.seeds} seeds"]
    return _table(head + [COLUMNS[n] for n in names], rows)

  def by_step(self):
    """Distances of all checkpoints."""
    rows = [
      [arm, *(_cell(self.at(arm, step, DISTANCE)) for step in self.steps)]
      for arm in self.arms
    ]
    return _table(["distance after steps", *map(str, self.steps)], rows)

  def by_calls(self):
    """Distances of the last checkpoint by calls of the model a sample."""
    step = self.steps[-1]
    rows = [
      [
        f"{arm}; {solver}",
        *(_cell(self.at(arm, step, DISTANCE, solver, n)) for n in self.calls),
      ]
      for arm, solver in self.solvers
    ]
    return _table(["distance by calls", *map(str, self.calls)], rows)

  def until(self):
    """What it takes to come as near as the worst arm does at its end."""
    last = self.steps[-1]
    goal = max(self.mean(arm, last, DISTANCE) for arm in self.arms)
    rows = []
    for arm in self.arms:
      steps = self._steps_to(arm, goal)
      a_step = self._least(arm, "seconds_a_step")
      calls, seconds = self._calls_to(arm, goal)
      rows.append(
        [arm, f"{steps:.0f}", f"{steps * a_step:.0f}", calls, seconds]
      )
    head = [f"to a distance of {goal:.3g}", "steps", "seconds of training"]
    return _table([*head, "calls", "seconds a sample"], rows)

  def _steps_to(self, arm, goal) -> float:
    """Between checkpoints the logarithm of the distance is taken as linear."""
    before = None
    for step in self.steps:
      value = self.mean(arm, step, DISTANCE)
      if value <= goal * (1 + 1e-9):
        if before is None:
          return step
        part = math.log(before[1] / goal) / math.log(before[1] / value)
        return before[0] + part * (step - before[0])
      before = step, value
    return math.nan

  def _calls_to(self, arm, goal):
    """The fewest calls by any solver, and their seconds."""
    step = self.steps[-1]
    reached = [
      (n, self._least(arm, "seconds_a_sample", solver, n))
      for a, solver in self.solvers
      for n in self.calls
      if a == arm and self.mean(arm, step, DISTANCE, solver, n) <= goal
    ]
    calls, seconds = min(reached, default=(math.nan, math.nan))
    return str(calls), f"{seconds:.3g}"

  def _least(self, arm, name, *how) -> float:
    """Of all seeds: other work on a machine only adds."""
    return min(self.at(arm, self.steps[-1], name, *how), default=math.nan)

  def draw(self, path):
    """Distances by steps, and by calls."""
    from matplotlib.figure import Figure  # slow to import

    panels = 1 + self.has_sweep
    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    colour = {arm: f"C{i}" for i, arm in enumerate(self.arms)}
    for arm in self.arms:
      found = [(s, self.at(arm, s, DISTANCE)) for s in self.steps]
      _line(axes[0], found, label=arm, color=colour[arm])
    axes[0].set(xlabel="steps", ylabel="distance from real digits")
    if self.has_sweep:
      for arm, solver in self.solvers:
        found = [
          (n, self.at(arm, self.steps[-1], DISTANCE, solver, n))
          for n in self.calls
        ]
        is_usual = solver == self.usual[arm][0]
        how = dict(color=colour[arm], linestyle="-" if is_usual else ":")
        _line(axes[1], found, label=f"{arm}; {solver}", **how)
      axes[1].set(xlabel="calls of the model a sample", xscale="log")
    for panel in axes:
      for name, style in zip(FLOORS, ("--", "-."), strict=True):
        for floor in self.at(name, 0, DISTANCE):
          panel.axhline(floor, color="grey", linestyle=style, label=name)
      panel.set(yscale="log")
      panel.grid(alpha=0.3)
      panel.legend(fontsize="x-small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    path.parent.mkdir(exist_ok=True)
    files.write_whole(path, buffer.getvalue())


def _line(axes, found, **how):
  found = [(x, values) for x, values in found if values]
  if not found:
    return
  x, values = zip(*found, strict=True)
  axes.errorbar(
    x,
    list(map(np.mean, values)),
    list(map(_deviation, values)),
    marker=".",
    capsize=2,
    linewidth=1,
    **how,
  )


def _cell(values: list[float]) -> str:
  """Mean and deviation over seeds."""
  if not values:
    return "-"
  mean = f"{np.mean(values):.3g}"
  return mean if len(values) == 1 else f"{mean} ± {_deviation(values):.2g}"


def _deviation(values) -> float:
  return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _table(head, rows) -> list[str]:
  line = lambda cells: f"| {' | '.join(cells)} |"
  return [line(head), line(["---"] * len(head)), *map(line, rows)]
