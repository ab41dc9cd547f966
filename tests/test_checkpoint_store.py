"""Checkpoints on an object store: whole or absent, found by all who read."""

import contextlib
import os
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from goku_jax import checkpoint, store
from goku_jax.sample import restore
from goku_jax.train import loop
from goku_jax.typing import UserError
from tests import gcs, runs
from tests.test_checkpoint_faults import kill_in_save

SIZE = 5000
ABSTRACT = {
  "params": {"w": jax.ShapeDtypeStruct((SIZE,), "float32")},
  "count": jax.ShapeDtypeStruct((), "int64"),
}

# Saves steps one after the other, each removing the one before.
SAVES = """
import sys
import numpy as np
from goku_jax import checkpoint
with checkpoint.Checkpointer(sys.argv[1], keep=1) as checkpointer:
  for step in range(int(sys.argv[2])):
    w = np.full(int(sys.argv[3]), step, "float32")
    trees = {"params": {"w": w}, "count": np.int64(step)}
    checkpointer.save(step, trees, {"step": step})
"""

# Restores the newest step until it is the last one, each of them in full; says
# which steps it saw, and how often one was removed while it was read.
READS = """
import sys
import jax, numpy as np
from goku_jax import checkpoint
from goku_jax.typing import UserError
folder, saves, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
w = jax.ShapeDtypeStruct((size,), "float32")
abstract = {"params": {"w": w}, "count": jax.ShapeDtypeStruct((), "int64")}
seen, removed = [-1], 0
while seen[-1] < saves - 1:
  try:
    found = checkpoint.restore(folder, abstract)
  except UserError as error:
    assert "removed while it was read" in str(error), error
    removed += 1
    continue
  if found is None:
    continue
  step, trees, position = found
  assert position == {"step": step} and trees["count"] == step >= seen[-1]
  np.testing.assert_array_equal(trees["params"]["w"], np.float32(step))
  seen.append(step)
print(len(set(seen)) - 1, removed)
"""

# Saves step 1, then says so and waits for a line before step 2 begins, and for
# another before it is waited for; tells why it failed, and what a reader sees.
TELLS = """
import sys, time
import numpy as np
from goku_jax import checkpoint, store
def say(*words):
  print(*words, flush=True)
  return sys.stdin.readline()
trees = {"params": {"w": np.zeros(3_000_000, "float32")}}
checkpointer = checkpoint.Checkpointer(sys.argv[1])
checkpointer.save(1, trees, {})
checkpointer.wait()
say("whole")
checkpointer.save(2, trees, {})
say("begun")
for act in (checkpointer.wait, lambda: checkpoint.restore(sys.argv[1], trees)):
  try:
    print("no error:", act(), flush=True)
  except Exception as error:
    print(type(error).__name__, " ".join(str(error).split()), flush=True)
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
  """The folder of an emulator which this process and its children reach."""
  folder = tmp_path_factory.mktemp("emulator")
  with pytest.MonkeyPatch.context() as patch, gcs.serve(folder) as emulator:
    for name, value in gcs.environment(emulator.port).items():
      patch.setenv(name, value)
    yield folder


@pytest.fixture
def folder(emulator, request):
  """A folder of the store, another for each test."""
  return f"gs://{gcs.BUCKET}/{request.node.name}/checkpoints"


def make_trees(step):
  w = jax.numpy.arange(SIZE, dtype=np.float32) + step
  return {"params": {"w": w}, "count": np.int64(step)}


def save_steps(folder, *steps, **settings):
  with checkpoint.Checkpointer(folder, **settings) as checkpointer:
    for step in steps:
      checkpointer.save(step, make_trees(step), {"step": step})


def start(program, *arguments, more=None, **options):
  command = [sys.executable, "-c", program, *map(str, arguments)]
  environment = os.environ | {"PYTHONPATH": str(runs.ROOT), "XLA_FLAGS": ""}
  environment |= more or {}
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=environment, **options
  )


def steps_there(folder):
  """Steps of which anything at all is there."""
  return sorted(map(int, store.names(store.open_folder(folder))))


def test_steps_come_back_and_old_ones_go(folder):
  assert checkpoint.restore(folder, ABSTRACT) is None
  save_steps(folder, 1, 2, 3, 4, keep=2, keep_every=2)
  assert steps_there(folder) == checkpoint.whole_steps(folder) == [2, 3, 4]
  step, trees, position = checkpoint.restore(folder, ABSTRACT)
  assert (step, position) == (4, {"step": 4})
  np.testing.assert_array_equal(trees["params"]["w"], np.arange(SIZE) + 4)
  assert trees["count"] == 4
  with pytest.raises(RuntimeError, match="it is whole already"):
    save_steps(folder, 4)


@pytest.mark.slow
def test_a_changed_object_is_found_and_named(folder, capsys):
  abstract = {"count": ABSTRACT["count"]}
  with checkpoint.Checkpointer(folder) as checkpointer:
    for step in (1, 2):  # of few objects
      checkpointer.save(step, {"count": np.int64(step)}, {})
  path = store.open_folder(folder) / "2"
  names = store.sizes(path)
  assert {"manifest.json", "count/_METADATA"} < names.keys()
  verify = ["verify", folder, "--step=2"]
  for name in names:
    data = (path / name).read_bytes()
    place = random.Random(name).randrange(len(data))
    flipped = bytes([data[place] ^ 0x10])
    (path / name).write_bytes(data[:place] + flipped + data[place + 1 :])
    assert checkpoint.main(verify) == 1
    assert f"step 2: not whole ({name} differs" in capsys.readouterr().out
    if name == "count/manifest.ocdbt":
      with pytest.raises(UserError, match=f"2 is not whole .{name} differs"):
        checkpoint.restore(folder, abstract, fall_back=False)
      assert checkpoint.restore(folder, abstract)[0] == 1
    (path / name).write_bytes(data)
  assert checkpoint.main(verify) == 0


def test_a_step_without_an_object_is_not_whole(folder):
  save_steps(folder, 1, 2)
  path = store.open_folder(folder) / "2"
  (path / "count" / "_METADATA").unlink()
  assert checkpoint.whole_steps(folder) == [1]
  with pytest.raises(UserError, match="count/_METADATA is missing"):
    checkpoint.restore(folder, ABSTRACT, step=2)


def test_a_store_that_refuses_is_not_an_empty_one(folder, emulator, capsys):
  save_steps(folder, 1)
  with gcs.refusing(emulator, 403, "no access to objects"):
    for read in (
      lambda: checkpoint.whole_steps(folder),
      lambda: checkpoint.restore(folder, ABSTRACT),
    ):
      with pytest.raises(UserError, match=r"cannot be reached.*no access"):
        read()
    with pytest.raises(RuntimeError, match=r"2 could not be saved.*no access"):
      save_steps(folder, 2)
    assert checkpoint.main(["list", folder]) == 2
    assert "no access to objects" in capsys.readouterr().err
  save_steps(folder, 2)
  assert checkpoint.whole_steps(folder) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fault", "cause"),
  [("expired", "Invalid Credentials, 401"), ("gone", "Cannot connect to host")],
)
def test_a_store_lost_in_mid_save_ends_it_with_the_cause(
  tmp_path, fault, cause
):
  path = f"gs://{gcs.BUCKET}/lost"
  with gcs.serve(tmp_path) as emulator, contextlib.ExitStack() as faults:
    environment = gcs.environment(emulator.port)
    child = start(TELLS, path, stdin=subprocess.PIPE, more=environment)
    with child:
      for word in ("whole", "begun"):
        assert child.stdout.readline().strip() == word
        if word == "begun" and fault == "gone":
          emulator.kill()
        elif word == "begun":
          faults.enter_context(gcs.refusing(tmp_path, 401, cause[:-5]))
        print(file=child.stdin, flush=True)
      output, _ = child.communicate(timeout=250)
  saved, read = output.splitlines()
  assert saved.startswith(f"RuntimeError the checkpoint {path}/2 could not be")
  assert read.startswith(f"UserError {path} cannot be reached")
  assert cause in read
  assert child.returncode == 0


@pytest.mark.slow
def test_an_upload_killed_midway_leaves_no_step(folder):
  _kill_uploads(folder, [0.05])


@pytest.mark.slow
def test_uploads_killed_at_any_moment_leave_no_step(folder):
  rng = random.Random(0)
  halves = _kill_uploads(folder, [0.5 * rng.random() for _ in range(6)])
  assert halves > 0  # else nothing was tried


def _kill_uploads(folder, delays):
  """Kills saves after delays; returns how many left a part of a step."""
  abstract = {
    "params": [jax.ShapeDtypeStruct((64, 64), "float64")] * 4,
    "count": jax.ShapeDtypeStruct((), "int32"),
  }
  previous, halves = -1, 0
  for delay in delays:
    known = kill_in_save(folder, delay)  # goes on where the last one died
    step, trees, position = checkpoint.restore(folder, abstract)
    assert step >= known > previous
    assert position == {"step": step}
    assert trees["count"] == step
    halves += steps_there(folder) != checkpoint.whole_steps(folder)
    previous = known
  assert len(steps_there(folder)) <= 4
  return halves


@pytest.mark.slow
def test_a_reader_beside_training_sees_whole_steps_alone(folder):
  given = (folder, 20, 500_000)  # steps, each without the one before, floats
  with start(READS, *given) as reader, start(SAVES, *given) as saver:
    seen, _ = reader.communicate(timeout=250)
  assert (reader.returncode, saver.returncode) == (0, 0)
  assert int(seen.split()[0]) > 5  # of different steps


def test_limits_of_bytes_in_flight_reach_orbax(folder, tmp_path):
  too_few = 1e-6  # GB, less than one array
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  w = jax.ShapeDtypeStruct((SIZE,), "float32", sharding=device)
  abstract = ABSTRACT | {"params": {"w": w}}
  for place in (folder, tmp_path):
    with pytest.raises(RuntimeError, match="Requested more bytes"):
      save_steps(place, 1, save_gb=too_few)
    save_steps(place, 2, save_gb=1.0)
    with pytest.raises(ValueError, match="Requested more bytes"):
      checkpoint.restore(place, abstract, restore_gb=too_few)
    assert checkpoint.restore(place, abstract, restore_gb=1.0)[0] == 2


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://", "gs:///"])
def test_other_stores_are_refused(path):
  with pytest.raises(UserError, match="give a folder of a disk or gs://"):
    store.open_folder(path)


@pytest.mark.slow
def test_a_run_on_a_store_goes_on_and_is_found_by_its_workdir(
  folder, workdir, capsys
):
  changes = dict(save_every_steps=1, show_every_steps=100)
  changes |= dict(checkpoint__folder=folder, optim__schedule="constant")
  loop.train(runs.read_config(total_steps=1, **changes), workdir)
  loop.train(runs.read_config(total_steps=2, **changes), workdir)
  assert "resumed from step 1" in capsys.readouterr().out
  assert not (workdir / "checkpoints").exists()
  assert restore.restore(workdir).step == 2
  assert checkpoint.main(["list", str(workdir)]) == 0
  assert "step 2: whole" in capsys.readouterr().out
