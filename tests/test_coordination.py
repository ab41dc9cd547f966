"""What processes tell each other: here by two of them."""

import pytest

from tests import runs
from tests.integration.test_processes import finish, two_processes

PROGRAM = """
import sys
import jax
from goku_jax import coordination
from goku_jax.parallel import multihost

multihost.initialize()
me, items = jax.process_index(), ["a", "b", "c"]

def say(text):
  print(text, file=sys.stderr, flush=True)

def act(share):
  if sys.argv[1] == str(me):
    raise OSError("the disk is gone")
  return {name: me for name in share}

def all_of_it():
  return coordination.spread("work", lambda: items, act)

try:
  if me:
    assert all_of_it() is None
  coordination.by_the_first("done", lambda: say(all_of_it()))
except Exception as error:
  say(f"{type(error).__name__}: {error}")
say(f"end {me}")
"""


@pytest.mark.parametrize(
  ("fails", "told"),
  [
    pytest.param(
      "nobody", ["{'a': 0, 'c': 0, 'b': 1}", ""], marks=pytest.mark.slow
    ),
    pytest.param(
      "0",
      ["OSError: the disk is gone", "RuntimeError: the disk is gone"],
      marks=pytest.mark.slow,
    ),
    ("1", ["RuntimeError: process 1: the disk is gone"] * 2),
  ],
)
def test_work_is_spread_and_its_failure_is_told_to_all(fails, told, port):
  command = (PROGRAM, fails)
  with two_processes(port, *command, run=runs.start_program) as processes:
    errors = finish(processes)
  for index, error in enumerate(errors):
    assert told[index] in error
    assert ("Error" in error) == (fails != "nobody")
    assert f"end {index}" in error
