"""What evaluations found: one line each, and pictures and tables of all.

  results.jsonl   a record an evaluation, in the order in which they ended
  results.md      a table a suite
  curves/*.png    a figure over the steps
  tensorboard/    the same

All but the first are made of it anew, so that a kill costs the record that was
being made and no other.
"""

import contextlib
import datetime
import json
import math
import pathlib
import shlex
import sys

import jax

from goku_jax import __version__, files, lines
from goku_jax.config import flatten
from goku_jax.data import video_io
from goku_jax.typing import UserError

NAME = "results.jsonl"
LOCK = ".evaluating"


class Results:
  """The records of a folder; only its `open_results` may add to them."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)

  def records(self) -> list[dict]:
    """All that were written whole, oldest first.

    Raises:
      UserError: a line before the last is no record.
    """
    path = self.folder / NAME
    return lines.read(path) if path.exists() else []

  def has(self, suite: str, step: int | None, weights: str, settings) -> bool:
    """Whether there is such a record already."""
    wanted = json.loads(files.to_json(dict(settings)))
    return any(
      (r["suite"], r["step"], r["weights"]) == (suite, step, weights)
      and r["settings"] == wanted
      for r in self.records()
    )

  def add(self, suite, step, weights, settings, figures: dict):
    """Appends a record, and draws tables and curves anew.

    Args:
      suite: its name.
      step: of the checkpoint; None where there is none.
      weights: ema or params.
      settings: of the suite, as JSON has them.
      figures: numbers and names of what they are of, nested or not.
    """
    record = {
      "suite": suite,
      "step": step,
      "weights": weights,
      "figures": flatten(figures),
      "settings": dict(settings),
      "command": command(),
      "devices": jax.device_count(),
      "device": jax.devices()[0].device_kind,
      "versions": {"goku_jax": __version__, "jax": jax.__version__},
      "ended": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }
    lines.Log(self.folder / NAME).append(json.loads(files.to_json(record)))
    self._draw(suite, step, weights, record["figures"])

  def best(self, figure: str, weights: str, among=None) -> int:
    """The step with the best value of a figure so far.

    Records count that have the weights and settings of the last one of its
    suite: no others can be compared.

    Args:
      figure: SUITE.NAME, the least value of which is best, or max:SUITE.NAME.
      weights: ema or params.
      among: steps; None is all.

    Raises:
      UserError: no record has it, or it is no number.
    """
    largest, name = figure.startswith("max:"), figure.removeprefix("max:")
    suite, _, name = name.partition(".")
    rows = [
      r
      for r in self.records()
      if (r["suite"], r["weights"]) == (suite, weights)
      and (r["step"] is not None if among is None else r["step"] in among)
      and r["figures"].get(name) is not None
    ]
    if not rows:
      raise UserError(
        f"no record in {self.folder / NAME} has {suite}.{name} of {weights}:"
        f" evaluate --suite={suite} first"
      )
    rows = [r for r in rows if r["settings"] == rows[-1]["settings"]]
    value = lambda row: row["figures"][name]
    if not all(isinstance(value(row), int | float) for row in rows):
      raise UserError(f"{suite}.{name} is no number but {value(rows[-1])!r}")
    return (max if largest else min)(rows, key=value)["step"]

  def _draw(self, suite, step, weights, figures):
    records = self.records()
    files.write_whole(self.folder / "results.md", table(records).encode())
    for group, shown in curves(records, suite).items():
      path = self.folder / "curves" / f"{suite}.{group}.png"
      video_io.panels(path, shown)
    import tensorboardX  # slow to import

    board = tensorboardX.SummaryWriter(str(self.folder / "tensorboard"))
    with contextlib.closing(board):
      for name, value in numbers(figures).items():
        board.add_scalar(f"{suite}/{weights}/{name}", value, step or 0)


@contextlib.contextmanager
def open_results(folder):
  """The `Results` of a folder, to which no other process adds meanwhile.

  Raises:
    UserError: another one does.
  """
  files.make_folder(str(folder), "out")
  taken = f"another evaluation writes to {folder}: wait for its end, or give"
  with files.locked(pathlib.Path(folder) / LOCK, f"{taken} another --out"):
    yield Results(folder)


def command() -> str:
  """What this process was started as."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  name = spec.name.removesuffix(".__main__") if spec else sys.argv[0]
  return shlex.join(["python", *(["-m"] if spec else []), name, *sys.argv[1:]])


def numbers(figures: dict) -> dict:
  """Those figures that are finite numbers."""
  return {
    name: value
    for name, value in figures.items()
    if isinstance(value, int | float) and math.isfinite(value)
  }


def curves(records, suite: str) -> dict[str, dict]:
  """Of a suite by group, figure and weights: steps and values so far.

  A group is what a name begins with, up to its first dot; what lies deeper is
  in the records alone. Where a step was evaluated again, the last one counts.
  """
  found = {}
  for record in records:
    if record["suite"] == suite and record["step"] is not None:
      for name, value in numbers(record["figures"]).items():
        group, _, figure = name.partition(".")
        if figure and "." not in figure and not figure.startswith("num_"):
          kinds = found.setdefault(group, {}).setdefault(figure, {})
          kinds.setdefault(record["weights"], {})[record["step"]] = value
  sort = lambda by_step: tuple(zip(*sorted(by_step.items()), strict=True))
  return {
    group: {
      figure: {weights: sort(by_step) for weights, by_step in kinds.items()}
      for figure, kinds in figures.items()
    }
    for group, figures in found.items()
  }


def table(records) -> str:
  """Markdown: of each suite the figures of every record.

  What lies deeper than a group, such as bins, is in the records alone.
  """
  parts = []
  for suite in dict.fromkeys(record["suite"] for record in records):
    rows = [record for record in records if record["suite"] == suite]
    names = dict.fromkeys(n for row in rows for n in row["figures"])
    names = [name for name in names if name.count(".") < 2]
    head = ["step", "weights", *names]
    shown = [head, ["---"] * len(head)]
    for row in rows:
      values = [_shown(row["figures"].get(name)) for name in names]
      shown.append([str(row["step"]), row["weights"], *values])
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in shown]
    text = "\n".join(f"| {' | '.join(row)} |" for row in escaped)
    parts.append(f"## {suite}\n\n{text}\n\n    {rows[-1]['command']}\n")
  return "\n".join(["# Results\n", *parts])


def _shown(value) -> str:
  if value is None:
    return ""
  return f"{value:.5g}" if isinstance(value, float) else str(value)
