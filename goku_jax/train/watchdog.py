"""Ends a process that hangs, with the stacks of all threads of all processes.

A hang has no error: one host waits for a disk, a decoder or another host, and
all wait for it. So each process has a thread that knows since when it does what
it does, and how long that took before. Past a deadline it writes the stacks to
stderr and ends the process with status 70; the scheduler starts it again. The
others learn of it through JAX's coordination service, not by a collective, and
do the same. Where one process fails with an error they would wait for it as
well, and end with its status.
"""

import atexit
import collections
import contextlib
import faulthandler
import json
import os
import sys
import threading
import time

import jax
import numpy as np

from goku_jax import coordination
from goku_jax.typing import UserError

STATUS = 70  # EX_SOFTWARE
FAILED = 1
KEY = "goku_jax/ends"
LISTEN_SECONDS = 3.0
KNOWN = 5  # so many times something was done, before its deadline is its own
REMEMBERED = 1000


class Watchdog:
  """Watches what is done `with watchdog.watch(name)`, and all of a run.

  Args:
    factor: of the 99th percentile of how long it took; 0 watches nothing.
    least_seconds: no deadline is shorter.
    first_seconds: the deadline of what was not done five times yet.
    grace_seconds: between the stacks and the end, for the other processes to
      write theirs: who loses a process is ended by JAX without a word.
  """

  def __init__(
    self,
    *,
    factor: float,
    least_seconds: float,
    first_seconds: float,
    grace_seconds: float = 10.0,
  ):
    if factor and factor < 1:
      raise UserError(f"watchdog.factor={factor}: set 1 or more, or 0 for none")
    for name, value in (("least", least_seconds), ("first", first_seconds)):
      if value <= 0:
        raise UserError(f"watchdog.{name}_seconds={value}: set more than 0")
    self._factor, self._grace = factor, grace_seconds
    self._least, self._first = least_seconds, first_seconds
    self._took = collections.defaultdict(
      lambda: collections.deque(maxlen=REMEMBERED)
    )
    self._since = {}  # name -> when it began
    self._ended, self._heard = threading.Event(), None
    self._every = min(1.0, least_seconds / 4)

  def __enter__(self):
    if self._factor:
      threading.Thread(target=self._run, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, kind, error, traceback):
    self._ended.set()
    if self._factor and isinstance(error, Exception) and coordination.client():
      status = 2 if isinstance(error, UserError) else FAILED
      told = f"process {jax.process_index()} failed: {kind.__name__}: {error}"
      # What ends another one may be all that this one failed of.
      status = _say_to_all(told, status)
      # Else JAX waits for the others at the exit, for five minutes.
      atexit.register(_leave, status, others_first=True)

  @contextlib.contextmanager
  def watch(self, name: str):
    """Ends the process if what is within takes too long."""
    began = self._since[name] = time.monotonic()
    try:
      yield
    finally:
      del self._since[name]
      self._took[name].append(time.monotonic() - began)

  def deadline(self, name: str) -> float:
    """Seconds that something may take now."""
    took = list(self._took[name])
    if len(took) < KNOWN:
      return max(self._first, self._least)
    return max(self._least, self._factor * float(np.percentile(took, 99)))

  def forget(self):
    """Lets everything take as long as the first time again."""
    self._took.clear()

  def _run(self):
    threading.Thread(target=self._listen, name="listen", daemon=True).start()
    while not self._ended.wait(self._every):
      if late := self._late():
        self._end(late, STATUS)
      elif self._heard:
        self._end(**json.loads(self._heard))

  def _listen(self):
    """Asks the service, which may hang as well: in a thread of its own."""
    client = coordination.client()
    while client and not self._ended.wait(LISTEN_SECONDS):
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # nothing is told
        self._heard = client.key_value_try_get(KEY)

  def _end(self, told, status):
    try:
      print(f"watchdog: {told}; the stacks here:", file=sys.stderr, flush=True)
      faulthandler.dump_traceback(all_threads=True)
      say = threading.Thread(target=_say_to_all, args=(told, status))
      say.daemon = True  # the service may hang as well
      say.start()
      if status == STATUS:
        time.sleep(self._grace)
      # The first one takes the service along, without which JAX ends the rest
      # without a word.
      _leave(status, others_first=jax.process_index() == 0)
    finally:
      os._exit(status)  # a thread that hangs lets no other way through

  def _late(self):
    now = time.monotonic()
    for name, began in list(self._since.items()):
      if now - began > (limit := self.deadline(name)):
        return (
          f"process {jax.process_index()} is in {name!r} for"
          f" {now - began:.1f} s, the deadline is {limit:.1f} s"
        )
    return None


def _say_to_all(told, status) -> int:
  """Tells why a process ends; returns the status of who said so first."""
  client = coordination.client()
  if client is None:
    return status
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # said already
    client.key_value_set(KEY, json.dumps({"told": told, "status": status}))
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody hears
    status = json.loads(client.key_value_try_get(KEY))["status"]
  return status


def _leave(status, others_first):
  """Ends this process at once, or once the others have heard why."""
  sys.stdout.flush()
  sys.stderr.flush()
  if others_first and coordination.client():
    time.sleep(3 * LISTEN_SECONDS)
  os._exit(status)
