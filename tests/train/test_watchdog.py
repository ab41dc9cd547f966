"""What hangs is ended, and says where; what is slow is not."""

import subprocess
import sys
import time

import pytest

from goku_jax.train import watchdog
from goku_jax.typing import UserError

HANG = """
import sys, threading, time
from goku_jax.train.watchdog import Watchdog

def wait_for_a_disk():
  threading.Event().wait()

with Watchdog(
  factor=2.0, least_seconds=0.2, first_seconds=float(sys.argv[1]),
  grace_seconds=0.1,
) as dog:
  for _ in range(int(sys.argv[2])):
    with dog.watch("save"):
      time.sleep(0.1)
  print("begins", flush=True)
  with dog.watch("save"):
    wait_for_a_disk()
"""


@pytest.mark.parametrize(
  ("first", "times"), [(600, 5), pytest.param(1, 0, marks=pytest.mark.slow)]
)
def test_a_hang_ends_with_the_stacks_of_all_threads(first, times):
  done = subprocess.run(
    [sys.executable, "-c", HANG, str(first), str(times)],
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert done.returncode == watchdog.STATUS
  assert done.stdout == "begins\n"
  assert "watchdog: process 0 is in 'save' for " in done.stderr
  assert "in wait_for_a_disk" in done.stderr
  assert "in _run" in done.stderr  # another thread


def test_deadlines_follow_what_was():
  dog = watchdog.Watchdog(factor=3.0, least_seconds=0.01, first_seconds=50.0)
  assert dog.deadline("step") == 50.0
  for _ in range(watchdog.KNOWN):
    with dog.watch("step"):
      time.sleep(0.02)
  assert 0.06 <= dog.deadline("step") < 50.0
  assert dog.deadline("save") == 50.0
  dog = watchdog.Watchdog(factor=3.0, least_seconds=60.0, first_seconds=50.0)
  assert dog.deadline("step") == 60.0


def test_what_fails_is_no_hang():
  with watchdog.Watchdog(
    factor=1.0, least_seconds=0.05, first_seconds=0.05, grace_seconds=0.0
  ) as dog:
    with pytest.raises(ZeroDivisionError), dog.watch("step"):
      raise ZeroDivisionError
    time.sleep(0.3)  # nothing is watched, and the process lives


@pytest.mark.parametrize(
  ("key", "value", "says"),
  [
    ("factor", 0.5, "watchdog.factor=0.5: set 1 or more, or 0"),
    ("least_seconds", 0.0, "watchdog.least_seconds=0.0: set more"),
    ("first_seconds", -1.0, "watchdog.first_seconds=-1.0: set more"),
  ],
)
def test_settings_that_mean_nothing_are_refused(key, value, says):
  settings = dict(factor=3.0, least_seconds=1.0, first_seconds=1.0)
  with pytest.raises(UserError, match=says):
    watchdog.Watchdog(**settings | {key: value})
