"""Which host is slow.

In a step all wait for the last, so that it takes as long on every host. What a
host does itself, reading its share of the batch and bringing it to the devices,
is its own. The hosts tell it to JAX's coordination service, where the first
reads it: no collective, for which all would wait. A slow device is found by
`launch/first_hour.sh --short`.

  <workdir>/hosts.jsonl  seconds of each host's own a step, and which are slow
"""

import json
import logging
import math
import pathlib
import socket
import statistics
import time

import jax

from goku_jax import coordination, lines

KEY = "goku_jax/pace"
EVERY_SECONDS = 30.0


class Pace:
  """Tells and names the slowest host, every half minute.

  Args:
    workdir: of the run.
    limit: so many times the median is slow; 0: nothing is.
    least_seconds: a step, of its own, below which no host is slow.
  """

  def __init__(self, workdir, limit: float, least_seconds: float = 0.05):
    self._path = pathlib.Path(workdir) / "hosts.jsonl"
    self._limit, self._least = limit, least_seconds
    self._client = coordination.client()
    self._own, self._told = [], time.monotonic()

  def add(self, step: int, seconds: float):
    """Takes what this host did itself for a step."""
    self._own.append(seconds)
    if not self._client or time.monotonic() - self._told < EVERY_SECONDS:
      return
    row = {"host": socket.gethostname(), "seconds": statistics.mean(self._own)}
    key = f"{KEY}/{jax.process_index()}"
    self._client.key_value_set(key, json.dumps(row), allow_overwrite=True)
    self._own, self._told = [], time.monotonic()
    if jax.process_index() == 0:
      rows = {
        int(name.rpartition("/")[2]): json.loads(text)
        for name, text in self._client.key_value_dir_get(KEY)
      }
      self._tell(step, rows)

  def _tell(self, step, rows):
    own = {i: row["seconds"] for i, row in rows.items()}
    slowest = max(own, key=own.get)
    median = statistics.median(own.values())
    limit = max(self._limit * median, self._least) if self._limit else math.inf
    slow = [rows[i]["host"] for i in own if own[i] > limit]
    row = {"step": step, "hosts": rows, "slow": slow}
    lines.Log(self._path).append(row)
    logging.log(
      logging.WARNING if slow else logging.INFO,
      "step %d: the slowest host is %s, process %d: %.3g s a step of its own,"
      " the median is %.3g s%s",
      step,
      rows[slowest]["host"],
      slowest,
      own[slowest],
      median,
      f"; leave out {', '.join(slow)}" if slow else "",
    )
