"""JSON lines that are appended to, and survive a stop in the middle of one."""

import json
import os
import pathlib

from goku_jax.typing import UserError


class Log:
  """A file of JSON objects, one a line; one writer at a time.

  What a stop has left of a last line is removed.
  """

  def __init__(self, path):
    self._path = pathlib.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    with self._path.open("a+b") as file:
      file.seek(0)
      data = file.read()
      end = data.rfind(b"\n") + 1
      if _parse(data[end:]):
        file.write(b"\n")
      else:
        file.truncate(end)

  def append(self, row: dict) -> None:
    """Adds a line; it is on the disk when this returns."""
    with self._path.open("ab") as file:
      file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
      file.flush()
      os.fsync(file.fileno())


def read(path) -> list[dict]:
  """The objects of a file, without blank lines and a last one that is cut.

  Raises:
    UserError: it cannot be read, or another line is not a JSON object.
  """
  try:
    lines = pathlib.Path(path).read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"{path}: cannot read it ({error.strerror})") from error
  rows = []
  for number, line in enumerate(lines, 1):
    row = _parse(line)
    if row:
      rows.append(row)
    elif line.strip() and number < len(lines):
      raise UserError(f"{path}, line {number}: not a JSON object")
  return rows


def _parse(line: bytes) -> dict | None:
  try:
    row = json.loads(line)
  except ValueError:  # of Unicode too
    return None
  return row if isinstance(row, dict) else None
