"""A roll call among threads, each of them a process of its own."""

import contextlib
import functools
import socket
import time
from concurrent import futures

import pytest

from goku_jax.parallel import roll
from goku_jax.typing import UserError

NAMES = ["process 0 (a)", "process 1 (b)", "process 2 (c)"]


def outcome(port, index, deadline_seconds, names=NAMES):
  """What the call of one process says, None if all have come."""
  try:
    return roll.call(f"localhost:{port}", index, names, deadline_seconds)
  except UserError as error:
    return str(error)


@contextlib.contextmanager
def called_by(*indices, port, deadline_seconds):
  """Futures of the outcomes of several processes."""
  with futures.ThreadPoolExecutor() as pool:
    one = functools.partial(outcome, port, deadline_seconds=deadline_seconds)
    yield [pool.submit(one, index) for index in indices]


def test_all_return_once_all_have_come(port):
  with called_by(2, 1, port=port, deadline_seconds=60.0) as others:
    assert outcome(port, 0, 60.0) is None
    assert [other.result() for other in others] == [None, None]


def test_all_that_came_name_the_one_that_did_not(port):
  with called_by(2, port=port, deadline_seconds=60.0) as (other,):
    told = outcome(port, 0, 2.0)
    assert told == "process 1 (b) did not arrive within 2 s"
    assert other.result() == told


def test_of_many_that_did_not_come_eight_are_named(port):
  told = outcome(port, 0, 0.0, [f"process {i}" for i in range(100)])
  assert "process 7, process 8 and 91 more did not" in told


def test_the_first_process_is_named_too(port):
  told = outcome(port, 1, 0.0)
  assert "process 0 (a) did not arrive within 0 s (" in told
  assert "refused" in told


def test_a_first_process_that_leaves_is_named(port):
  with (
    socket.create_server(("", port)) as server,
    called_by(1, port=port, deadline_seconds=60.0) as (other,),
  ):
    server.settimeout(60)
    server.accept()[0].close()
    assert other.result() == "process 0 (a) left: look at its log"


def test_a_stranger_does_not_count(port):
  with called_by(0, port=port, deadline_seconds=60.0) as (first,):
    connect = lambda: roll.connect("localhost", port, 60.0)
    for words in (b"GET / HTTP/1.1\r\n", b"\xff\n", b"2 of", b""):
      with connect() as link:
        link.sendall(words)
    with called_by(1, 2, port=port, deadline_seconds=60.0) as others:
      assert [one.result() for one in (first, *others)] == [None] * 3


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_process_that_starts_again_counts_once(port, order):
  with called_by(0, port=port, deadline_seconds=60.0) as (first,):
    with roll.connect("localhost", port, 60.0) as link:
      link.sendall(b"1 of 3\n")
    with called_by(order[0], port=port, deadline_seconds=60.0) as (second,):
      time.sleep(0.5)  # has been heard; nobody may join yet
      assert [first.done(), second.done()] == [False, False]
      with called_by(order[1], port=port, deadline_seconds=60.0) as (third,):
        assert [one.result() for one in (first, second, third)] == [None] * 3


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_count_otherwise_are_told(port, count):
  with called_by(0, port=port, deadline_seconds=60.0) as (first,):
    told = outcome(port, 1, 60.0, NAMES[:1] * count)
    assert told == f"a process says it is 1 of {count}, but process 0 is of 3"
    assert first.result() == told


def test_a_port_that_another_program_holds_is_refused(port):
  with socket.create_server(("", port)):
    assert f"cannot listen on port {port}" in outcome(port, 0, 60.0)
