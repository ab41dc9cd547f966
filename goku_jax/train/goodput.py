"""Where the time of a run goes, over all its starts.

  <workdir>/goodput.jsonl  lines of each start: how far it came, seconds so far

Each second is booked to one of `KINDS`; they add up to the time since the run
was first started, that between its starts included. Only `step` is good. What
was trained after the checkpoint that a start goes on from is `lost`.
"""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable

from goku_jax import lines

NAME = "goodput.jsonl"
KINDS = (
  "step",  # the devices train
  "compile",
  "data",  # the devices wait for it
  "save",  # they wait for it
  "restore",
  "evaluation",  # pictures included
  "lost",  # steps that had to be done again
  "idle",  # all else: starting, and between two starts
)
EVERY_SECONDS = 10.0


class Goodput:
  """Books the seconds of this start, and knows those of earlier ones.

  Args:
    began: `time.perf_counter()` of its beginning; None is now.
  """

  def __init__(self, began: float | None = None):
    now = time.perf_counter()
    self._clock = now if began is None else began
    self._began = time.time() - (now - self._clock)
    self._seconds = dict.fromkeys(KINDS, 0.0)
    self._before = dict.fromkeys(KINDS, 0.0)
    self._doing, self._log, self._rows = "idle", None, []
    self._written, self._kept, self._step = -math.inf, 0, 0

  @contextlib.contextmanager
  def book(self, kind: str, hidden: Callable[[], bool] = lambda: False):
    """Books what is done within to `kind`; one may lie in another.

    Args:
      kind: of `KINDS`.
      hidden: asked at the end; whether the devices trained all the while, so
        that it was a `step` for them.
    """
    outer = self._doing
    self._switch(kind)
    try:
      yield
    finally:
      self._doing = "step" if hidden() else kind
      self._switch(outer)

  def keep(self, workdir, first: int):
    """Takes up the lines of earlier starts, and adds this one's from now on.

    Args:
      workdir: of the run.
      first: the step from which this start goes on.
    """
    path = pathlib.Path(workdir) / NAME
    self._log = lines.Log(path)
    starts = {}
    for row in lines.read(path):
      starts.setdefault(row["began"], []).append(row)
    goes_on = [(rows[0]["step"], began) for began, rows in starts.items()]
    goes_on.append((first, self._began))
    for rows, (step, began) in zip(starts.values(), goes_on[1:], strict=True):
      seconds = rows[-1]["seconds"]
      lost = seconds["step"] - _trained(rows, step)
      # Clocks on walls may jump; no time is negative.
      more = {"step": -lost, "lost": lost}
      more["idle"] = max(0.0, began - rows[-1]["time"])
      for kind in KINDS:
        self._before[kind] += seconds[kind] + more.get(kind, 0.0)
    self.reached(first, at_once=True)

  def reached(self, step: int, *, at_once: bool = False):
    """Tells how far this start is; a line of it is written now and then.

    Args:
      step: that comes next.
      at_once: whether a checkpoint makes it one to go on from.
    """
    self._step, now = step, time.perf_counter()
    if at_once or now - self._written >= EVERY_SECONDS:
      self._written = now
      self._switch(self._doing)
      seconds = {kind: round(s, 3) for kind, s in self._seconds.items()}
      row = {"began": self._began, "time": time.time(), "step": step}
      row["seconds"] = seconds
      # Those of checkpoints alone are asked for again.
      self._rows = [*self._rows[: self._kept], row]
      self._kept += at_once
      if self._log:
        self._log.append(row)

  def end(self):
    """Writes the last line of this start."""
    self.reached(self._step, at_once=True)

  def go_back(self, step: int):
    """Books what was trained in this start from a step on as lost."""
    lost = self._seconds["step"] - _trained(self._rows, step)
    self._seconds["step"] -= lost
    self._seconds["lost"] += lost

  def seconds(self) -> dict[str, float]:
    """Of each kind, over all starts."""
    self._switch(self._doing)
    return {kind: self._before[kind] + self._seconds[kind] for kind in KINDS}

  def shares(self) -> dict[str, float]:
    """Of each kind, in parts that add up to 1."""
    seconds = self.seconds()
    total = math.fsum(seconds.values())
    return {kind: part / total for kind, part in seconds.items()}

  def tell(self) -> str:
    """A line for people: the whole, and its parts in percent."""
    total = math.fsum(self.seconds().values())
    parts = [f"{kind} {part:.1%}" for kind, part in self.shares().items()]
    return f"of {total:,.0f} seconds since the first start: {', '.join(parts)}"

  def _switch(self, kind):
    now = time.perf_counter()
    self._seconds[self._doing] += now - self._clock
    self._doing, self._clock = kind, now


def _trained(rows, step) -> float:
  """Seconds of training, of one start, that led up to a step."""
  led_up = [row for row in rows if row["step"] <= step]
  return led_up[-1]["seconds"]["step"] if led_up else 0.0
