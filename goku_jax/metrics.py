"""Metrics of a run and the progress that its user watches."""

import json
import math
import os
import shutil
import sys
import time

from goku_jax import files


class Writers:
  """Metrics of a run, to `metrics.jsonl` and TensorBoard.

  A step's number counts the updates before it, so that a run resumed at
  `start` writes `start` anew: what a lost run wrote from there on is dropped.
  """

  def __init__(self, workdir, start: int = 0):
    import tensorboardX  # not before a job needs it

    path = os.path.join(workdir, "metrics.jsonl")
    _drop_steps(path, start)
    self._lines = open(path, "a", buffering=1)  # noqa: SIM115, see close
    self._board = tensorboardX.SummaryWriter(
      os.path.join(workdir, "tensorboard"),
      purge_step=start or None,
      filename_suffix=f".from_{start}",  # a quick restart overwrites nothing
    )

  def write_scalars(self, step: int, scalars: dict):
    """Writes one line; call it once a step."""
    scalars = {name: files.plain(value) for name, value in scalars.items()}
    self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
    for name, value in scalars.items():
      if value is not None:
        self._board.add_scalar(name, value, step)

  def write_board(self, step: int, group: str, scalars: dict):
    """Writes numbers to TensorBoard alone."""
    for name, value in scalars.items():
      self._board.add_scalar(f"{group}/{name}", value, step)

  def write_image(self, step: int, name: str, image_HWC):
    """Writes a uint8 picture to TensorBoard."""
    self._board.add_image(name, image_HWC, step, dataformats="HWC")

  def close(self):
    """Flushes both."""
    self._lines.close()
    self._board.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


def _drop_steps(path, start):
  """Drops lines of steps from `start` on, and one that a kill cut short."""
  if not os.path.exists(path):
    return
  with open(path) as file:
    lines = file.readlines()
  kept = [line for line in lines if _step_of(line) < start]
  if kept != lines:
    with open(path + ".tmp", "w") as file:
      file.writelines(kept)
    os.replace(path + ".tmp", path)


def _step_of(line):
  try:
    return json.loads(line)["step"] if line.endswith("\n") else math.inf
  except ValueError:
    return math.inf


class Progress:
  """A bar on a terminal, elsewhere a line every ten seconds; on stderr.

  `unit` names what `made` of `update` counts, told by the second.
  """

  def __init__(
    self, total: int, start: int = 0, desc: str = "", unit="", every_s=10.0
  ):
    self.total, self.desc, self.every_s = total, desc, every_s
    self.unit = unit
    self._first = self._printed = None
    self._bar = None
    if sys.stderr.isatty():
      import tqdm  # not before a job needs it

      # tqdm is mute on a terminal that tells no size; here it is 80 x 24.
      columns, rows = shutil.get_terminal_size()
      self._bar = tqdm.tqdm(
        total=total,
        initial=start,
        desc=desc,
        ncols=columns,
        nrows=rows,
        bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
      )

  def update(
    self,
    done: int,
    *,
    made: int = 0,
    loss=None,
    tokens_per_second=None,
    mfu=None,
  ):
    """Shows that `done` of the steps are behind us."""
    now = time.monotonic()
    if self._first is None:  # the first step compiled: no measure of the rest
      self._first = done, now, made
    parts = []
    if made > self._first[2]:
      rate = (made - self._first[2]) / (now - self._first[1])
      parts.append(f"{rate:.3g} {self.unit}/s")
    if loss is not None:
      parts.append(f"loss {float(loss):.4f}")
    if tokens_per_second is not None:
      parts.append(f"{tokens_per_second:,.0f} tokens/s")
    if mfu is not None:
      parts.append(f"MFU {mfu:.1%}")
    if done > self._first[0]:
      pace = (now - self._first[1]) / (done - self._first[0])
      seconds = round(pace * (self.total - done))
      parts.append(f"{seconds // 60}:{seconds % 60:02d} left")
    if self._bar is not None:
      self._bar.set_postfix_str(", ".join(parts), refresh=False)
      self._bar.update(done - self._bar.n)
    elif (
      self._printed is None
      or now - self._printed >= self.every_s
      or done >= self.total
    ):
      self._printed = now
      line = ", ".join([f"{self.desc} {done}/{self.total}", *parts])
      print(line.strip(), file=sys.stderr, flush=True)

  def close(self):
    """Leaves the bar's last state on the terminal."""
    if self._bar is not None:
      self._bar.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()
