"""Children that die, hang or grow are replaced, and only their file is lost."""

import concurrent.futures
import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from goku_jax.data import media, video_io
from goku_jax.data.decoder import Decoder
from goku_jax.data.media import Limits, Unreadable

FOREVER = 60.0


@pytest.fixture
def born():
  """Gives the children that were started since the test began."""
  before = children()
  return lambda: [child for child in children() if child not in before]


def children():
  """Process ids of this process's decoders."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
      command = (folder / "cmdline").read_bytes()
    except OSError:  # it ended while we looked
      continue
    if parent == os.getpid() and b"goku_jax.data.decoder" in command:
      found.append(int(folder.name))
  return found


def own(pool):
  """Process ids of a pool's children; `video_io` has some of its own."""
  return [x._process.pid for x in pool._idle.queue if x._process]


def is_alive(process):
  try:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
  except OSError:
    return False
  return "\nState:\tZ" not in status


def array(value=0, T=2):
  """A file whose frames, of 8x8 pixels, all have one value."""
  buffer = io.BytesIO()
  np.save(buffer, np.full((T, 8, 8, 3), value, np.uint8))
  return buffer.getvalue()


@pytest.fixture
def endless(tmp_path):
  """A file that gives its reader nothing and no end."""
  path = tmp_path / "endless.mp4"
  os.mkfifo(path)
  return str(path)


@pytest.fixture(scope="module")
def pool():
  with Decoder(1, limits=Limits(frames=100)) as decoder:
    yield decoder


def test_children_give_what_media_does_for_a_path_and_for_bytes(pool, tmp_path):
  video = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
  path = tmp_path / "ä.mp4"
  video_io.write_video(path, video, fps=10)
  times = [0.1, 0.1, 0.7]
  expected = media.read(str(path), times, (16, 32))
  for file in (str(path), path.read_bytes()):
    assert pool.probe(file) == media.probe(str(path))
    found = pool.read(file, times, (16, 32))
    np.testing.assert_array_equal(found, expected)
    found[:] = 0  # the caller's own


def test_a_path_is_taken_from_the_folder_of_the_caller(
  pool, tmp_path, monkeypatch
):
  pool.probe(array())  # its child runs already
  monkeypatch.chdir(tmp_path)
  (tmp_path / "-i.npy").write_bytes(array())
  assert pool.probe("-i.npy").frames == 2


@pytest.mark.parametrize(
  ("file", "reason"),
  [
    (b"", "empty file"),
    (b"not a film", "not a picture or video"),
    (array(T=101), "more than 100 frames"),
    ("/no/such/file.mp4", "No such file"),
  ],
)
def test_what_cannot_be_read_says_why(pool, file, reason):
  for ask in (pool.probe, lambda file: pool.read(file, [0.0], (8, 8))):
    with pytest.raises(Unreadable, match=reason):
      ask(file)
  assert len(own(pool)) == 1


def test_times_that_do_not_rise_are_the_callers_fault(pool):
  with pytest.raises(ValueError, match="do not rise"):
    pool.read(array(), [0.1, 0.0], (8, 8))


def test_a_pool_of_nobody_is_refused():
  with pytest.raises(ValueError, match="set 1 or more"):
    Decoder(0)


def test_a_child_killed_at_work_is_replaced_and_its_file_refused(born, endless):
  with (
    Decoder(1, seconds=FOREVER) as decoder,
    concurrent.futures.ThreadPoolExecutor(1) as threads,
  ):
    asked = threads.submit(decoder.probe, endless)
    with open(endless, "wb"):  # waits until the child has opened it
      (child,) = born()
      os.kill(child, signal.SIGKILL)
      with pytest.raises(Unreadable, match=r"the decoder died \(signal 9\)"):
        asked.result()
    assert decoder.read(array(7), [0.0], (8, 8)).mean() == 7
    assert born() != [child]


def test_a_child_killed_while_idle_costs_no_file(born):
  with Decoder(1) as decoder:
    decoder.probe(array())
    (child,) = born()
    os.kill(child, signal.SIGKILL)
    while (
      b"\nState:\tZ" not in pathlib.Path(f"/proc/{child}/status").read_bytes()
    ):
      time.sleep(0.01)
    assert decoder.probe(array()).frames == 2
    assert born() != [child]


def test_an_interrupt_from_the_keyboard_is_not_for_children(pool):
  pool.probe(array())
  (child,) = own(pool)
  os.kill(child, signal.SIGINT)
  assert pool.probe(array()).frames == 2
  assert own(pool) == [child]


def test_a_file_that_takes_too_long_is_refused_and_the_next_is_read(endless):
  with Decoder(1, seconds=2.0) as decoder:
    with pytest.raises(Unreadable, match="took longer than 2 s"):
      decoder.read(endless, [0.0], (8, 8))
    assert decoder.read(array(7), [0.0], (8, 8)).mean() == 7


def test_an_interrupted_file_does_not_answer_for_the_next(pool, endless):
  def interrupt(*_):
    raise KeyboardInterrupt

  pool.probe(array())
  before = signal.signal(signal.SIGALRM, interrupt)
  try:
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
      pool.probe(endless)
  finally:
    signal.signal(signal.SIGALRM, before)
  assert pool.probe(array(T=5)).frames == 5


def test_a_child_has_limits_that_it_cannot_raise(born):
  with Decoder(1, memory_gib=0.5) as decoder:
    decoder.probe(array())
    (child,) = born()
    text = pathlib.Path(f"/proc/{child}/limits").read_text()
  for name, value in (
    ("Max address space", 2**29),
    ("Max file size", 2**29),
    ("Max core file size", 0),
  ):
    (line,) = (x for x in text.splitlines() if x.startswith(name))
    assert line.split()[-3:-1] == [str(value)] * 2


def test_a_picture_that_needs_too_much_memory_is_refused(born):
  buffer = io.BytesIO()
  Image.new("1", (8192, 8192)).save(buffer, "png")  # a few kB
  with Decoder(1, memory_gib=0.4) as decoder:
    assert decoder.probe(buffer.getvalue())[1:3] == (8192, 8192)
    (child,) = born()
    with pytest.raises(Unreadable, match=r"needs more than 0\.4 GiB"):
      decoder.read(buffer.getvalue(), [0.0], (8, 8))
    assert decoder.read(array(7), [0.0], (8, 8)).mean() == 7
    assert born() == [child]


def test_threads_get_the_answers_to_their_own_files(born):
  def ask(i):
    frames = decoder.read(array(i, T=1 + i), [0.0, i / 8], (8, 8))
    return decoder.probe(array(i, T=1 + i)).frames, set(frames.ravel().tolist())

  with (
    Decoder(2) as decoder,
    concurrent.futures.ThreadPoolExecutor(8) as threads,
  ):
    assert list(threads.map(ask, range(64))) == [
      (1 + i, {i}) for i in range(64)
    ]
    assert len(born()) == 2


def test_a_closed_pool_refuses_but_its_frames_stay(born):
  with Decoder(1) as decoder:
    frames = decoder.read(array(7), [0.0], (8, 8))
    assert born()
  decoder.close()  # twice does no harm
  assert not born()
  with pytest.raises(RuntimeError, match="closed"):
    decoder.probe(array())
  assert frames.mean() == 7


def test_a_pickled_pool_is_one_of_its_own_with_the_same_settings(born):
  with pickle.loads(
    pickle.dumps(
      Decoder(1, seconds=9.0, memory_gib=1.0, limits=Limits(frames=1))
    )
  ) as other:
    with pytest.raises(Unreadable, match="more than 1 frames"):
      other.probe(array())
    assert len(born()) == 1


PARENT = """
import sys, time
from goku_jax.data.decoder import Decoder

decoder = Decoder(1)
decoder.probe(sys.argv[1])
print(decoder._idle.get()._process.pid, flush=True)
time.sleep(600)
"""


def test_children_end_with_a_parent_that_is_killed(tmp_path):
  path = tmp_path / "a.npy"
  path.write_bytes(array())
  command = [sys.executable, "-c", PARENT, str(path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
    child = int(parent.stdout.readline())
    was_alive = is_alive(child)
    parent.kill()
  assert was_alive
  deadline = time.monotonic() + 30
  while is_alive(child):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_no_descriptor_stays_open(pool, tmp_path):
  def opened():
    return [
      len(list(pathlib.Path(f"/proc/{process}/fd").iterdir()))
      for process in ("self", *children())
    ]

  def ask():
    pool.probe(array())
    pool.read(array(), [0.0], (8, 8))
    for file in (b"", str(tmp_path)):
      with pytest.raises(Unreadable):
        pool.read(file, [0.0], (8, 8))

  ask()
  before = opened()
  for _ in range(100):
    ask()
  assert opened() == before


def resident_mb(process):
  text = pathlib.Path(f"/proc/{process}/status").read_text()
  return int(text.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_files(born, tmp_path):
  """Films, pictures and arrays, probed and read, whole and cut short."""
  video = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
  files = [array()]
  for name in ("a.mp4", "a.gif", "a.png"):
    video_io.write_video(tmp_path / name, video[: 1 if "png" in name else 5])
    files.append((tmp_path / name).read_bytes())
  files += [data[: len(data) // 2] for data in files]

  def ask(i):
    try:
      decoder.read(files[i % len(files)], [0.0], (16, 16))
    except Unreadable:
      return 0
    return 1

  with (
    Decoder(2) as decoder,
    concurrent.futures.ThreadPoolExecutor(4) as threads,
  ):
    good = sum(threads.map(ask, range(1000)))
    processes = [os.getpid(), *born()]
    before = list(map(resident_mb, processes))
    good += sum(threads.map(ask, range(1000, 10_000)))
    assert good >= 5000
    assert [os.getpid(), *born()] == processes
    after = list(map(resident_mb, processes))
  for old, new in zip(before, after, strict=True):
    assert abs(new - old) < 20, (before, after)
