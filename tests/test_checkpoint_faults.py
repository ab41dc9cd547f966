"""Real faults: processes killed in mid-save, disks that fail, folders gone."""

import os
import pathlib
import random
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax import checkpoint

ROOT = pathlib.Path(__file__).parents[1]

# Saves step after step, from the newest whole one; says what it is about to do.
KILLED = """
import sys
import jax.numpy as jnp, numpy as np
from goku_jax import checkpoint
folder = sys.argv[1]
arrays = [np.random.default_rng(i).random((64, 64)) for i in range(4)]
abstract = {"params": arrays, "count": np.int32(0)}
last = checkpoint.restore(folder, abstract)
step = last[0] + 1 if last else 0
with checkpoint.Checkpointer(folder, keep=2) as checkpointer:
  while True:
    print("begin", step, flush=True)
    trees = {"params": [a + step for a in arrays], "count": np.int32(step)}
    checkpointer.save(step, trees, {"step": step})
    checkpointer.wait()
    print("whole", step, flush=True)
    step += 1
"""

# Saves a step, then one that the disk refuses, and tells what the next call
# says; the process must end by itself.
REFUSED = """
import resource, signal, sys
import numpy as np
from goku_jax import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
big = {"params": np.random.default_rng(0).random(100_000)}
checkpointer = checkpoint.Checkpointer(sys.argv[1])
checkpointer.save(1, big, {})
checkpointer.wait()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
checkpointer.save(2, big, {})
try:
  checkpointer.save(3, big, {})
except RuntimeError as error:
  print("failed:", str(error).replace(chr(10), " "), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
if sys.argv[2] == "recover":
  checkpointer.save(2, big, {})
  checkpointer.close()
"""


def start(program, *arguments, **options):
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  command = [sys.executable, "-c", program, *map(str, arguments)]
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=environment, **options
  )


def kill_in_save(folder, delay):
  """Kills a saving process `delay` seconds into its third save.

  Returns the last step that the process knew to be whole.
  """
  with start(KILLED, folder) as child:
    whole, begun = None, 0
    for line in child.stdout:
      word, step = line.split()
      begun += word == "begin"
      if word == "whole":
        whole = int(step)
      if begun == 3:
        time.sleep(delay)
        child.kill()
        break
    for line in child.stdout:  # what it still said before it died
      word, _, step = line.strip().partition(" ")
      whole = int(step) if word == "whole" and step else whole
  return whole


@pytest.mark.slow
def test_kill_in_mid_save_loses_no_whole_step(tmp_path):
  rng = random.Random(0)
  abstract = {
    "params": [jax.ShapeDtypeStruct((64, 64), "float64")] * 4,
    "count": jax.ShapeDtypeStruct((), "int32"),
  }
  previous = -1
  for delay in (0.0, 0.02, 0.05 * rng.random(), 0.1 * rng.random()):
    known = kill_in_save(tmp_path, delay)
    step, trees, position = checkpoint.restore(tmp_path, abstract)
    assert step >= known > previous
    assert position == {"step": step}
    assert trees["count"] == step
    for i, array in enumerate(trees["params"]):
      want = np.random.default_rng(i).random((64, 64)) + step
      np.testing.assert_array_equal(array, want)
    previous = known
  assert len(checkpoint.whole_steps(tmp_path)) <= 3


@pytest.mark.parametrize("mode", ["recover", "end"])
def test_a_write_that_fails_raises_at_the_next_call(tmp_path, mode):
  with start(REFUSED, tmp_path, mode, stderr=subprocess.DEVNULL) as child:
    output, _ = child.communicate(timeout=60)  # Orbax could hang for 302 s
  assert child.returncode == 0
  assert f"the checkpoint {tmp_path}/2 could not be saved" in output
  assert "File too large" in output
  whole = [1, 2] if mode == "recover" else [1]
  assert checkpoint.whole_steps(tmp_path) == whole


# Saves steps onto a disk that becomes read-only between them.
READ_ONLY = """
import pathlib, subprocess, sys
import numpy as np
from goku_jax import checkpoint
folder = pathlib.Path(sys.argv[1])
trees = {"params": np.arange(5.0)}
def mount(how):
  subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)
with checkpoint.Checkpointer(folder) as checkpointer:
  checkpointer.save(1, trees, {})
  checkpointer.wait()
  mount("ro")
  try:
    checkpointer.save(2, trees, {})
    checkpointer.wait()
  except RuntimeError as error:
    print("failed:", str(error).replace(chr(10), " "))
  print(checkpoint.whole_steps(folder))
  mount("rw")
  checkpointer.save(2, trees, {})
print(checkpoint.whole_steps(folder))
"""
# Saves steps onto a disk of 4 MB, of which there is no room for a second.
FULL = """
import pathlib, sys
import numpy as np
from goku_jax import checkpoint
folder = pathlib.Path(sys.argv[1])
big = {"params": np.random.default_rng(0).random(400_000)}
with checkpoint.Checkpointer(folder) as checkpointer:
  checkpointer.save(1, big, {})
  checkpointer.wait()
  checkpointer.save(2, big, {})
  try:
    checkpointer.wait()
  except RuntimeError as error:
    print("failed:", str(error).replace(chr(10), " "))
print(checkpoint.whole_steps(folder))
(step, trees, _) = checkpoint.restore(folder, big)
assert (trees["params"] == big["params"]).all()
with checkpoint.Checkpointer(folder, keep=1) as checkpointer:
  (folder / "1" / "manifest.json").unlink()  # room is made
  checkpointer.save(1, big, {})
print(checkpoint.whole_steps(folder))
"""


@pytest.mark.parametrize(
  ("program", "says", "whole"),
  [
    (FULL, "No space left on device", ("[1]", "[1]")),
    (READ_ONLY, "Read-only file system", ("[1]", "[1, 2]")),
  ],
  ids=["full", "read_only"],
)
def test_a_disk_that_takes_nothing_is_told_and_costs_no_whole_step(
  program, says, whole, tmp_path
):
  on_small_disk = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
  on_small_disk += ['mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"']
  if subprocess.run([*on_small_disk, tmp_path, "true"], check=False).returncode:
    pytest.skip("this machine lets no user mount a small disk")
  done = subprocess.run(
    [*on_small_disk, tmp_path, sys.executable, "-c", program, tmp_path],
    env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  failed, *found = done.stdout.splitlines()
  assert f"the checkpoint {tmp_path}/2 could not be saved" in failed
  assert says in failed
  assert tuple(found) == whole


def test_a_slow_disk_holds_up_no_step(tmp_path, monkeypatch):
  fsync, slow = os.fsync, threading.Event()

  def wait_for_the_disk(descriptor):
    slow.wait()
    fsync(descriptor)

  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    monkeypatch.setattr(os, "fsync", wait_for_the_disk)
    checkpointer.save(1, {"params": jnp.ones(3)}, {})
    checkpointer.check()  # neither waits
    assert checkpoint.whole_steps(tmp_path) == []
    slow.set()
    checkpointer.wait()
    assert checkpoint.whole_steps(tmp_path) == [1]


def test_a_failed_save_is_told_before_the_next_one(tmp_path, monkeypatch):
  def fail(path, record, files):
    raise OSError("the disk is gone")

  monkeypatch.setattr(checkpoint.manifest, "write", fail)
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save(1, {"params": jnp.ones(3)}, {})
  while not checkpointer._pending.done():
    time.sleep(0.01)
  with pytest.raises(RuntimeError, match="1 could not be saved: the disk is"):
    checkpointer.check()
  checkpointer.close()


def test_a_file_where_the_folder_should_be_raises(tmp_path):
  folder = tmp_path / "checkpoints"
  folder.write_text("in the way")
  with (
    checkpoint.Checkpointer(folder) as checkpointer,
    pytest.raises(RuntimeError, match=r"could not be saved.*File exists"),
  ):
    checkpointer.save(1, {"params": jnp.ones(3)}, {})
  assert folder.read_text() == "in the way"


def test_a_file_in_the_way_of_a_step_raises_and_stays(tmp_path):
  (tmp_path / "1").write_text("in the way")
  with (
    checkpoint.Checkpointer(tmp_path) as checkpointer,
    pytest.raises(RuntimeError, match=r"could not be saved.*Not a directory"),
  ):
    checkpointer.save(1, {"params": jnp.ones(3)}, {})
  assert checkpoint.whole_steps(tmp_path) == []


def test_a_folder_removed_between_saves_is_made_again(tmp_path):
  folder = tmp_path / "checkpoints"
  with checkpoint.Checkpointer(folder) as checkpointer:
    checkpointer.save(1, {"params": jnp.ones(3)}, {})
    checkpointer.wait()
    folder.rename(tmp_path / "gone")
    checkpointer.save(2, {"params": jnp.ones(3)}, {})
  assert checkpoint.whole_steps(folder) == [2]


def test_a_folder_removed_under_a_commit_raises(tmp_path, monkeypatch):
  folder = tmp_path / "checkpoints"
  write = checkpoint.manifest.write

  def write_late(path, record, files):
    folder.rename(tmp_path / "gone")
    write(path, record, files)

  monkeypatch.setattr(checkpoint.manifest, "write", write_late)
  checkpointer = checkpoint.Checkpointer(folder)
  checkpointer.save(1, {"params": jnp.ones(3)}, {})
  with pytest.raises(RuntimeError, match="1 could not be saved"):
    checkpointer.close()
  assert checkpoint.whole_steps(tmp_path / "gone") == []


def save_and_fail(folder):
  with checkpoint.Checkpointer(folder) as checkpointer:
    checkpointer.save(1, {"params": jnp.ones((500, 500))}, {})
    raise ZeroDivisionError


def test_the_last_save_is_waited_for_when_the_run_fails(tmp_path):
  with pytest.raises(ZeroDivisionError):
    save_and_fail(tmp_path)
  assert checkpoint.whole_steps(tmp_path) == [1]


def test_a_failed_last_save_does_not_hide_why_the_run_ended(
  tmp_path, monkeypatch, caplog
):
  def fail(path, record, files):
    raise OSError("the disk is gone")

  monkeypatch.setattr(checkpoint.manifest, "write", fail)
  with pytest.raises(ZeroDivisionError):
    save_and_fail(tmp_path)
  assert "1 could not be saved: the disk is gone" in caplog.text
