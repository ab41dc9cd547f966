"""JSON lines through a stop."""

import pytest

from goku_jax import lines
from goku_jax.typing import UserError


def test_what_is_appended_is_read(tmp_path):
  log = lines.Log(tmp_path / "new" / "log.jsonl")
  rows = [{"prompt": "a façade\nof stone"}, {"seed": 3}]
  for row in rows:
    log.append(row)
  assert lines.read(tmp_path / "new" / "log.jsonl") == rows


def test_a_line_that_a_stop_has_cut_is_left_out_and_removed(tmp_path):
  path = tmp_path / "log.jsonl"
  path.write_text('{"seed": 1}\n{"se')
  assert lines.read(path) == [{"seed": 1}]
  lines.Log(path).append({"seed": 2})
  assert lines.read(path) == [{"seed": 1}, {"seed": 2}]


def test_a_last_line_without_its_end_and_blank_ones_are_kept_apart(tmp_path):
  path = tmp_path / "log.jsonl"
  path.write_bytes(b'{"seed": 1}\r\n\r\n{"seed": 2}')
  lines.Log(path).append({"seed": 3})
  assert lines.read(path) == [{"seed": 1}, {"seed": 2}, {"seed": 3}]


@pytest.mark.parametrize("line", [b"a cat", b"[1]", b"\xff"])
def test_another_line_is_named(tmp_path, line):
  path = tmp_path / "log.jsonl"
  path.write_bytes(b'{"seed": 1}\n' + line + b'\n{"seed": 2}\n')
  with pytest.raises(UserError, match=r"log\.jsonl, line 2: not a JSON object"):
    lines.read(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match="No such file"):
    lines.read(tmp_path / "none.jsonl")
