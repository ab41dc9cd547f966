"""Traces of some steps, by every process for itself."""

import contextlib

import jax

from goku_jax.typing import UserError


class Profile(contextlib.AbstractContextManager):
  """Traces `steps` steps from step `start` on; none where `steps` is 0.

  Each process writes `profile/PROCESS/` in the workdir: an xprof trace
  (`xprof --logdir`, or TensorBoard's plugin) and `memory.prof`, what its
  devices held at the end of the last of these steps (`pprof`).

  Raises:
    UserError: a number is negative.
  """

  def __init__(self, workdir, start: int = 0, steps: int = 0):
    for name, value in (("start", start), ("steps", steps)):
      if value < 0:
        raise UserError(f"profile.{name}={value}: set 0 or more")
    self.folder = workdir / "profile" / f"{jax.process_index():04d}"
    self.steps, self.running = range(start, start + steps), False

  def at(self, step: int, state):
    """To be called before each step, with the state that it starts from."""
    if step in self.steps and not self.running:
      jax.block_until_ready(state)  # what came before is not traced
      self.folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(self.folder)
      self.running = True
    elif self.running and step not in self.steps:
      self._end(state)

  def _end(self, state):
    jax.block_until_ready(state)
    jax.profiler.save_device_memory_profile(self.folder / "memory.prof")
    self._stop()

  def _stop(self):
    self.running = False
    jax.profiler.stop_trace()

  def __exit__(self, *_):
    if self.running:  # training ended, or failed, within these steps
      self._stop()
