"""Every second is booked once, over all starts of a run."""

import math
import time
import types

import pytest

from goku_jax import lines
from goku_jax.train import goodput


class Clock:
  """Two clocks: one that runs on, and one on a wall that may jump."""

  def __init__(self):
    self.now, self.wall = 100.0, 1e9

  def pass_(self, seconds):
    self.now += seconds
    self.wall += seconds


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  fake = types.SimpleNamespace(
    perf_counter=lambda: clock.now, time=lambda: clock.wall
  )
  monkeypatch.setattr(goodput, "time", fake)
  return clock


def book(found, clock, kind, seconds, **more):
  with found.book(kind, **more):
    clock.pass_(seconds)


def seconds(found):
  return {kind: s for kind, s in found.seconds().items() if s}


def test_the_parts_add_up_to_all(clock):
  found = goodput.Goodput(began=90.0)
  for kind in goodput.KINDS:
    book(found, clock, kind, 1.0)
  with found.book("evaluation"):
    clock.pass_(2.0)
    book(found, clock, "save", 4.0)
    clock.pass_(2.0)
  assert found.seconds() == {
    **dict.fromkeys(goodput.KINDS, 1.0),
    "idle": 11.0,
    "evaluation": 5.0,
    "save": 5.0,
  }
  assert math.isclose(sum(found.shares().values()), 1.0)
  assert found.tell() == (
    "of 26 seconds since the first start: step 3.8%, compile 3.8%, data 3.8%,"
    " save 19.2%, restore 3.8%, evaluation 19.2%, lost 3.8%, idle 42.3%"
  )


def test_a_wait_while_the_devices_train_is_a_step(clock):
  found = goodput.Goodput()
  book(found, clock, "data", 3.0, hidden=lambda: True)
  book(found, clock, "data", 2.0, hidden=lambda: False)
  assert seconds(found) == {"step": 3.0, "data": 2.0}


def test_what_a_kill_took_is_lost(clock, tmp_path):
  one = goodput.Goodput()
  one.keep(tmp_path, 0)
  for step in range(1, 6):
    book(one, clock, "step", 10.0)
    one.reached(step)
  clock.pass_(100.0)  # dead, and started again from step 3
  two = goodput.Goodput()
  two.keep(tmp_path, 3)
  assert seconds(two) == {"step": 30.0, "lost": 20.0, "idle": 100.0}
  book(two, clock, "step", 10.0)
  two.reached(4, at_once=True)
  clock.pass_(7.0)
  three = goodput.Goodput()
  three.keep(tmp_path, 4)
  assert seconds(three) == {"step": 40.0, "lost": 20.0, "idle": 107.0}


def test_a_line_that_a_kill_cut_short_is_passed_over(clock, tmp_path):
  one = goodput.Goodput()
  one.keep(tmp_path, 0)
  book(one, clock, "step", 10.0)
  one.reached(1)
  with (tmp_path / goodput.NAME).open("a") as file:
    file.write('{"began": 1e9, "ti')
  two = goodput.Goodput()
  two.keep(tmp_path, 1)
  assert seconds(two) == {"step": 10.0}
  assert len(lines.read(tmp_path / goodput.NAME)) == 3


def test_steps_that_are_left_behind_are_lost(clock, tmp_path):
  found = goodput.Goodput()
  found.keep(tmp_path, 0)
  for step in range(1, 6):
    book(found, clock, "step", 10.0)
    found.reached(step, at_once=True)
  found.go_back(2)
  assert seconds(found) == {"step": 20.0, "lost": 30.0}
  book(found, clock, "step", 10.0)
  found.reached(3, at_once=True)
  found.go_back(3)  # which loses nothing: after it came nothing
  assert seconds(found) == {"step": 30.0, "lost": 30.0}


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_makes_no_time_negative(clock, tmp_path, jump):
  one = goodput.Goodput()
  one.keep(tmp_path, 0)
  book(one, clock, "step", 10.0)
  clock.wall += jump
  book(one, clock, "step", 10.0)
  one.reached(2, at_once=True)
  assert seconds(one) == {"step": 20.0}
  clock.wall -= 2 * jump
  two = goodput.Goodput()
  two.keep(tmp_path, 2)
  assert all(s >= 0 for s in two.seconds().values())
  assert math.isclose(sum(two.shares().values()), 1.0)


def test_the_real_clock_is_booked():
  found = goodput.Goodput(began=time.perf_counter() - 5)
  with found.book("save"):
    time.sleep(0.01)
  assert 0.01 <= found.seconds()["save"] < 5 <= found.seconds()["idle"]
