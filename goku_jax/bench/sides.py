"""The sides of a comparison with PyTorch, each in a process of its own.

They take turns: neither's threads or memory are in the other's figures, and
what else the machine does falls on both.
"""

import contextlib
import importlib.metadata
import multiprocessing

from goku_jax.typing import UserError


def versions(*names: str, extras: str = "parity") -> dict:
  """Those of packages, torch and diffusers unless named, which extras bring.

  Raises:
    UserError: one is missing.
  """
  names = names or ("diffusers", "torch")
  try:
    return {name: importlib.metadata.version(name) for name in names}
  except importlib.metadata.PackageNotFoundError as error:
    raise UserError(
      f"this suite needs {' and '.join(names)}: pip install"
      f" 'goku_jax[{extras}]'"
    ) from error


@contextlib.contextmanager
def start(target, *args):
  """A connection to a process that runs `target`, ended at the end."""
  context = multiprocessing.get_context("spawn")  # threads do not survive fork
  here, there = context.Pipe()
  process = context.Process(target=target, args=(there, *args), daemon=True)
  process.start()
  there.close()
  try:
    yield here
  finally:
    process.terminate()
    process.join()


def ask(side, what):
  """What a side answers, once it has."""
  side.send(what)
  return side.recv()
