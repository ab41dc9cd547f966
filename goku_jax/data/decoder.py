"""Probes and reads media files in child processes that can be killed.

A file from strangers may crash a decoder, fill the memory or never end. Each
child (this module, run) handles one file at a time under a limit of memory; one
that dies or takes too long is replaced, and its file is `Unreadable`.

A request and its answer are JSON on a pipe. Encoded bytes go and frames come in
memory that both have mapped, so nothing from a child is unpickled. It is kept
and as large as the largest read so far: pages that were there before cost a
tenth of new ones.
"""

import contextlib
import functools
import json
import math
import mmap
import os
import queue
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import connection

import numpy as np

from goku_jax.data import films
from goku_jax.data import media as media_lib
from goku_jax.data.media import LIMITS, Limits, Probe, Unreadable
from goku_jax.typing import UserError


class Decoder:
  """A pool of children, for as many threads at a time; others wait.

  A context manager that ends them. They start when they are needed and end
  with this process at the latest. Pickled, it is a pool of its own; do not use
  it on both sides of a fork.

  Args:
    workers: children; each decodes on one core.
    seconds: of the clock that a file may take, on a loaded machine too.
    memory_gib: a child may take, of address space.
    limits: of what a file holds.
  """

  def __init__(
    self,
    workers: int,
    *,
    seconds: float | int = 60,
    memory_gib: float | int = 4,
    limits: Limits = LIMITS,
  ):
    if workers < 1:
      raise UserError(f"workers={workers} decode nothing: set 1 or more")
    self._settings = dict(seconds=seconds, memory_gib=memory_gib, limits=limits)
    self._workers, self._is_closed = workers, False
    self._idle = queue.LifoQueue()  # the ones that run are taken first
    for _ in range(workers):
      self._idle.put(_Child(**self._settings))

  def __reduce__(self):
    return functools.partial(Decoder, **self._settings), (self._workers,)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def close(self) -> None:
    """Waits for what is being decoded and ends the children, for good."""
    self._is_closed = True
    for child in [self._idle.get() for _ in range(self._workers)]:
      child.close()
      self._idle.put(child)

  def probe(self, media: str | bytes) -> Probe:
    """As `media.probe`; Unreadable too where a child dies or takes too long."""
    return Probe(*self._ask({}, media))

  def read(
    self, media: str | bytes, times: Sequence[float], size: tuple[int, int]
  ) -> np.ndarray:
    """As `media.read`; Unreadable too where a child dies or takes too long."""
    media_lib.check_times(times)
    size = int(size[0]), int(size[1])
    return self._ask({"times": list(map(float, times)), "size": size}, media)

  def call(self, name: str, path: str, **given):
    """What a function of `films` gives: an answer, and an array or None.

    Unreadable as with `probe`.
    """
    return self._ask({"call": name, "given": given}, path)

  def _ask(self, request, media):
    child = self._idle.get()
    try:
      if self._is_closed:  # threads that read ahead may come late
        raise RuntimeError("the decoder is closed")
      return child.ask(request, media)
    finally:
      self._idle.put(child)


class _Child:
  """One process, started again where it ended."""

  def __init__(self, *, seconds, memory_gib, limits):
    self._seconds = seconds
    self._settings = json.dumps([seconds, memory_gib, limits])
    self._process = self._pipe = self._memory = None

  def ask(self, request, media):
    """The answer; an array where the request has a size."""
    if self._process and self._process.poll() is not None:
      self.close()  # it ended with nothing to do: no fault of this file
    if self._process is None:
      self._start()
    if isinstance(media, bytes):
      request["bytes"] = len(media)
      self._memory.view(len(media))[:] = np.frombuffer(media, np.uint8)
    else:
      request["path"] = os.path.abspath(media)
    try:
      reason, answer = self._exchange(request)
    except (EOFError, ConnectionError):
      reason = died(self._process.wait())
      self.close()
    except BaseException:  # interrupted: the next would get this answer
      self.close()
      raise
    if reason:
      raise Unreadable(reason)
    if "call" in request:
      answer, shape = answer
      return answer, self._array(shape) if shape else None
    return self._array(_shape(request)) if "size" in request else answer

  def _array(self, shape):
    return self._memory.view(math.prod(shape)).reshape(shape).copy()

  def _exchange(self, request):
    self._pipe.send_bytes(json.dumps(request).encode())
    if self._pipe.poll(self._seconds):
      return json.loads(self._pipe.recv_bytes())
    self.close()
    return f"took longer than {self._seconds:g} s", None

  def _start(self):
    self._memory = _Memory(_file())
    self._pipe, theirs = connection.Pipe()
    fds = theirs.fileno(), self._memory.file.fileno()
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, "-m", __name__, *map(str, fds), self._settings],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=fds,
        env=environment(),
      )
    try:
      self._pipe.recv_bytes()  # imports are done: from here on time counts
    except (EOFError, ConnectionError):
      self.close()
      raise RuntimeError("a decoder does not start: see its error") from None

  def close(self):
    if self._process:
      self._pipe.close()
      self._process.kill()
      self._process.wait()
      self._memory.file.close()
    self._process = self._pipe = self._memory = None


def environment() -> dict[str, str]:
  """Of a child: it imports what we do."""
  # Threads of a library that is not used would count as memory.
  path = {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
  return os.environ | path


def died(code: int) -> str:
  """Why there is no answer of a child that ended with this status."""
  how = f"signal {-code}" if code < 0 else f"exit status {code}"
  return f"the decoder died ({how})"


class _Memory:
  """Memory of two processes, by a file that both have."""

  def __init__(self, file):
    self.file, self._map = file, b""

  def view(self, size):
    """Its first bytes, uint8 [size]; it grows where it has fewer."""
    if len(self._map) < size:
      if os.fstat(self.file.fileno()).st_size < size:
        self.file.truncate(size)
      self._map = b""  # two would need the room of both
      self._map = mmap.mmap(self.file.fileno(), size)
    return np.frombuffer(self._map, np.uint8, size)


def _file():
  """A file in memory, or else on a disk, that is gone once it is closed."""
  if hasattr(os, "memfd_create"):
    return open(os.memfd_create("goku_jax"), "w+b", buffering=0)
  return tempfile.TemporaryFile(buffering=0)


def _shape(request):
  return len(request["times"]), *request["size"], 3


def main(pipe_fd: str, memory_fd: str, settings: str) -> None:
  """Answers requests until the other side is gone."""
  seconds, memory_gib, limits = json.loads(settings)
  limit(memory_gib)
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  with (
    contextlib.suppress(EOFError, ConnectionError),
    open(int(memory_fd), "r+b", buffering=0) as file,
    connection.Connection(int(pipe_fd)) as pipe,
  ):
    memory = _Memory(file)
    pipe.send_bytes(b"ready")
    while True:
      request = json.loads(pipe.recv_bytes())
      # A parent that is gone kills nobody.
      signal.setitimer(signal.ITIMER_REAL, seconds + 5)
      try:
        answer = None, _answer(request, memory, Limits(*limits))
      except Unreadable as error:
        answer = str(error), None
      except (MemoryError, OSError):  # the latter where a map finds no room
        answer = f"needs more than {memory_gib:g} GiB of memory", None
      signal.setitimer(signal.ITIMER_REAL, 0)
      pipe.send_bytes(json.dumps(answer).encode())


def limit(memory_gib: float | int) -> None:
  """Limits this process, a child, for good: memory, files, core dumps."""
  space = int(memory_gib * 2**30)
  for kind, value in (
    (resource.RLIMIT_AS, space),
    (resource.RLIMIT_FSIZE, space),  # what both have mapped is a file
    (resource.RLIMIT_CORE, 0),
  ):
    _, most = resource.getrlimit(kind)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is meant for the parent


def _answer(request, memory, limits):
  if "call" in request:
    read = getattr(films, request["call"])
    answer, array = read(request["path"], **request["given"], limits=limits)
    if array is not None:
      memory.view(array.size)[:] = array.reshape(-1)
    return answer, None if array is None else array.shape
  if "path" in request:
    media = request["path"]
  else:  # frames will be put where its bytes are
    media = memory.view(request["bytes"]).tobytes()
  if "size" not in request:
    return media_lib.probe(media, limits)
  shape = _shape(request)
  out = memory.view(math.prod(shape)).reshape(shape)
  media_lib.read(media, request["times"], request["size"], limits, out)
  return None


if __name__ == "__main__":
  main(*sys.argv[1:])
