"""Items listed in a manifest: CSV, JSON lines or Parquet.

Columns: `path`, relative to the manifest's folder; `caption`, a text;
`captions`, a list or an object of texts (as JSON in CSV); any other column that
holds numbers is a score. Rows count from 1; in JSON lines, as lines do.
"""

import contextlib
import csv
import hashlib
import io
import json
import posixpath
import re
from collections.abc import Iterator

from etils import epath

from goku_jax.data.item_readers import (
  Item,
  Problem,
  Source,
  Tree,
  captions_and_scores,
  parse_object,
)
from goku_jax.typing import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class Manifest(Source):
  """The files that a manifest lists, in its order; a bad row is an item too.

  Raises:
    UserError: the manifest cannot be read, is empty, or has no column `path`.
  """

  def __init__(self, name: str):
    super().__init__(name)
    path = epath.Path(name)
    self._tree, self._file = Tree(str(path.parent)), path.name
    try:
      data = path.read_bytes()
    except OSError as error:
      reason = error.strerror or error
      raise UserError(f"{name} cannot be read: {reason}") from error
    self._digest = hashlib.sha256(data).hexdigest()
    rows, columns = _PARSERS[path.suffix.lower()](name, data)
    self._rows, taken = [], {}  # key, path, record, problem; keys by row
    for number, row in rows:
      self._rows.append(self._check(number, row, taken))
      columns |= row.keys() if isinstance(row, dict) else set()
    if not self._rows:
      raise UserError(f"0 items: {name} lists no file")
    if "path" not in columns:
      found = " ".join(sorted(map(repr, columns))) or "none"
      raise UserError(f"{name} has no column `path`; it has {found}")

  def __len__(self) -> int:
    return len(self._rows)

  def _check(self, number, row, taken):
    """A row as key, path, record and problem; a bad path as it is written."""
    key = f"{self._file}:row {number}"
    try:
      if isinstance(row, Problem):
        raise row
      written = row.get("path")
      if not isinstance(written, str) or not written:
        raise Problem("has no path")
      as_text = written.encode(errors="backslashreplace").decode()
      path = posixpath.normpath(as_text)
      if path in taken:
        raise Problem(f"{path} is listed in row {taken[path]} already")
      taken[path], key = number, as_text
      _check_path(written, as_text)
    except Problem as problem:
      return key, None, {}, str(problem)
    return path, path, {k: v for k, v in row.items() if k != "path"}, None

  def _key(self, i):
    return self._rows[i][0]

  def _read(self, i):
    key, path, record, problem = self._rows[i]
    if problem:
      raise Problem(problem)
    return Item(key, self._tree.media(path), *captions_and_scores(record))

  def _identity(self):
    yield self._digest
    if not self._tree.remote:  # where asking for a size takes a request
      yield from (path and self._tree.size(path) for _, path, *_ in self._rows)


def _check_path(written, as_text):
  if written != as_text:
    raise Problem("its path is not UTF-8")
  if "\0" in written:
    raise Problem("its path holds a NUL character")
  if _SCHEME.match(written):
    raise Problem("its path is a URL, not a file of the folder")
  if posixpath.normpath(written).startswith(("/", "../")):
    raise Problem("its path leads outside the folder")


# A parser gives (row number, the row or its problem), and the columns that it
# knows. Bytes that are not UTF-8 become surrogates, which are found row by row.


def _parse_csv(name, data):
  text = data.decode("utf-8-sig", errors="surrogateescape")
  # A stray quote makes one field of all that follows: a bad row, not an error.
  csv.field_size_limit(max(csv.field_size_limit(), len(text)))
  rows = csv.reader(io.StringIO(text, newline=""))
  header = next(rows, [])
  return (
    (number, _csv_row(header, row))
    for number, row in enumerate(filter(None, rows), 1)
  ), set(header)


def _csv_row(header, row) -> dict | Problem:
  if len(row) != len(header):
    return Problem(f"has {len(row)} fields where the header has {len(header)}")
  record = dict(zip(header, row, strict=True))
  for name, value in record.items():
    if name == "captions":
      try:
        record[name] = json.loads(value) if value else None
      except (ValueError, RecursionError):
        return Problem("`captions` is not valid JSON")
    elif name not in ("path", "caption"):
      with contextlib.suppress(ValueError):
        record[name] = float(value)
  return record


def _parse_json(name, data):
  text = data.decode("utf-8-sig", errors="surrogateescape")
  lines = enumerate(text.split("\n"), 1)
  return (
    (number, _json_row(line)) for number, line in lines if line.strip()
  ), set()


def _json_row(line) -> dict | Problem:
  try:
    return parse_object("the line", line)
  except Problem as problem:
    return problem


def _parse_parquet(name, data) -> tuple[Iterator, set]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UserError(
      f"{name} needs pyarrow: pip install goku_jax[data]"
    ) from error
  try:
    table = pyarrow.parquet.read_table(io.BytesIO(data))
  except (OSError, ValueError, pyarrow.ArrowException) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f"{name} is no Parquet file: {reason}") from error
  names = table.column_names
  columns = [map(_cell, column) for column in table.columns]
  rows = (
    dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
  )
  return enumerate(rows, 1), set(names)


def _cell(scalar):
  try:
    return scalar.as_py()
  except UnicodeDecodeError:
    return "\udcff"  # as a byte that is not UTF-8 elsewhere


_PARSERS = {
  ".csv": _parse_csv,
  ".jsonl": _parse_json,
  ".json": _parse_json,
  ".parquet": _parse_parquet,
}
SUFFIXES = tuple(_PARSERS)
