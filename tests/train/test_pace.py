"""The slowest host is named, and reported past a limit."""

import json

import pytest

from goku_jax import lines
from goku_jax.train import pace


class Service:
  """JAX's store of keys, of hosts that have told before."""

  def __init__(self, told):
    self.rows = {f"{pace.KEY}/{i}": json.dumps(row) for i, row in told.items()}

  def key_value_set(self, key, value, allow_overwrite):
    assert allow_overwrite
    self.rows[key] = value

  def key_value_dir_get(self, prefix):
    return [row for row in self.rows.items() if row[0].startswith(prefix)]


@pytest.mark.parametrize(
  ("seconds", "slow"), [(1.9, []), (2.1, ["b"]), (0.0, [])]
)
def test_the_slowest_is_named(tmp_path, monkeypatch, caplog, seconds, slow):
  others = {1: {"host": "b", "seconds": seconds}}
  others[2] = {"host": "c", "seconds": 1.0}
  found = pace.Pace(tmp_path, limit=2.0)
  monkeypatch.setattr(found, "_client", Service(others))
  monkeypatch.setattr(pace, "EVERY_SECONDS", 0.0)
  found.add(7, 1.0)
  (row,) = lines.read(tmp_path / "hosts.jsonl")
  assert (row["step"], row["slow"]) == (7, slow)
  assert [row["hosts"][i]["seconds"] for i in "012"] == [1.0, seconds, 1.0]
  assert ("leave out b" in caplog.text) == bool(slow)


def test_one_process_tells_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(pace, "EVERY_SECONDS", 0.0)
  pace.Pace(tmp_path, limit=2.0).add(7, 1.0)
  assert not list(tmp_path.iterdir())
