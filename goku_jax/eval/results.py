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
import fcntl
import json
import math
import os
import pathlib
import shlex
import sys

import jax

from goku_jax import __version__, files
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
    """All that were written whole, oldest first."""
    try:
      lines = (self.folder / NAME).read_text().splitlines(keepends=True)
    except FileNotFoundError:
      return []
    return [json.loads(line) for line in lines if line.endswith("\n")]

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
    line = json.dumps(json.loads(files.to_json(record)), allow_nan=False)
    _append(self.folder / NAME, line)
    self._draw(suite, step, weights, record["figures"])

  def best(self, suite: str, figure: str, *, largest: bool = False) -> int:
    """The step with the best value of a figure so far.

    Raises:
      UserError: no record has it.
    """
    found = {
      r["figures"][figure]: r["step"]
      for r in self.records()
      if r["suite"] == suite and r["figures"].get(figure) is not None
    }
    if not found:
      raise UserError(
        f"no record in {self.folder / NAME} has {suite}.{figure}: evaluate"
        f" --suite={suite} first"
      )
    return found[(max if largest else min)(found)]

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
  path = pathlib.Path(folder) / LOCK
  with open(path, "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f"another evaluation writes to {folder}: wait for its end, or give"
        " another --out"
      ) from None
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
          lines = found.setdefault(group, {}).setdefault(figure, {})
          lines.setdefault(record["weights"], {})[record["step"]] = value
  sort = lambda by_step: tuple(zip(*sorted(by_step.items()), strict=True))
  return {
    group: {
      figure: {weights: sort(by_step) for weights, by_step in lines.items()}
      for figure, lines in figures.items()
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
    lines = [head, ["---"] * len(head)]
    for row in rows:
      values = [_shown(row["figures"].get(name)) for name in names]
      lines.append([str(row["step"]), row["weights"], *values])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    parts.append(f"## {suite}\n\n{text}\n\n    {rows[-1]['command']}\n")
  return "\n".join(["# Results\n", *parts])


def _shown(value) -> str:
  if value is None:
    return ""
  return f"{value:.5g}" if isinstance(value, float) else str(value)


def _append(path, line: str):
  """Adds a line after what is whole; one that was cut off goes."""
  with open(path, "ab+") as file:
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.write(line.encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
