"""A roll call: every process of several has come, or all learn who has not.

JAX aborts a process that waits for another in vain, and names nobody. This goes
before it, on the port that JAX's coordinator listens on afterwards. Process 0
listens; each other one says "3 of 8", and is told "join" or what is wrong.
"""

import contextlib
import re
import socket
import time

from goku_jax.typing import UserError

PATIENCE_SECONDS = 5.0  # for one connection to be made, or to speak
RETRY_SECONDS = 0.2


def call(
  address: str, index: int, names: list[str], deadline_seconds: float = 300.0
):
  """Returns in every process once all have called it.

  Args:
    address: host:port of process 0.
    index: of this process, in `names`.
    names: of all processes, for the message.
    deadline_seconds: how long each waits.

  Raises:
    UserError: in every process that came, naming those that did not.
  """
  host, _, port = address.rpartition(":")
  if index:
    error = _answer(host, int(port), index, names, deadline_seconds)
  else:
    error = _ask(int(port), names, deadline_seconds)
  if error:
    raise UserError(error)


def _ask(port, names, deadline_seconds):
  """Process 0 waits for the others and tells them what is wrong, or ""."""
  links, error = {}, ""
  end = time.monotonic() + deadline_seconds
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(port))
    while not error and len(links) < len(names) - 1:
      if (left := end - time.monotonic()) <= 0:
        missing = [n for i, n in enumerate(names) if i and i not in links]
        error = _absence(missing, deadline_seconds)
        break
      with contextlib.suppress(OSError):  # nobody, or one who says nothing
        server.settimeout(left)
        link = stack.enter_context(server.accept()[0])
        link.settimeout(min(left, PATIENCE_SECONDS))
        line = link.makefile(errors="replace").readline(32)
        if said := re.fullmatch(r"(\d+) of (\d+)\n", line):  # no stranger
          error = _contradiction(*map(int, said.groups()), len(names))
          links[int(said[1])] = link  # of one that started again, the last
      links = {i: link for i, link in links.items() if not _left(link)}
    for link in links.values():
      link.settimeout(PATIENCE_SECONDS)
      with contextlib.suppress(OSError):
        link.sendall(f"{error or 'join'}\n".encode())
  return error


def _left(link) -> bool:
  """Whether the other end hung up: a process that died may come again."""
  link.setblocking(False)
  try:
    return not link.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True


def _contradiction(index, told, count):
  if told == count and 0 < index < count:
    return ""
  return f"a process says it is {index} of {told}, but process 0 is of {count}"


def _listen(port):
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(
      ("", port), family=family, dualstack_ipv6=both, backlog=1024
    )
  except OSError as error:
    raise UserError(
      f"cannot listen on port {port}: {error.strerror}; end what holds it, or"
      " set another port on all hosts"
    ) from error


def _answer(host, port, index, names, deadline_seconds):
  """Another process reports to process 0 and hears what is wrong, or ""."""
  try:
    link = connect(host, port, deadline_seconds)
  except OSError as error:
    return f"{_absence(names[:1], deadline_seconds)} ({error})"
  verdict = ""
  with link, contextlib.suppress(OSError):
    # Process 0 may have come just now, and then waits as long again.
    link.settimeout(deadline_seconds + PATIENCE_SECONDS)
    link.sendall(f"{index} of {len(names)}\n".encode())
    verdict = link.makefile(errors="replace").readline().strip()
  if not verdict:
    return f"{names[0]} left: look at its log"
  return "" if verdict == "join" else verdict


def connect(host: str, port: int, deadline_seconds: float) -> socket.socket:
  """A connection to a host that may only now be starting, or an OSError."""
  end = time.monotonic() + deadline_seconds
  while True:
    try:
      return socket.create_connection((host, port), PATIENCE_SECONDS)
    except OSError:  # its name may be unknown yet as well
      if time.monotonic() > end:
        raise
      time.sleep(RETRY_SECONDS)


def _absence(names, deadline_seconds):
  more = f" and {len(names) - 8} more" if names[8:] else ""
  return (
    f"{', '.join(names[:8])}{more} did not arrive within {deadline_seconds:g} s"
  )
