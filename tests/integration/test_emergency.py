"""Two hosts are killed, and go on from what one of them kept on its disk."""

import shutil
import time

import chex
import pytest

from goku_jax import lines, manifest
from goku_jax.train import emergency
from tests import runs
from tests.integration import test_processes

TOTAL = 12
NAMES = ("0", "1")  # of the hosts' disks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def training(base, port, total, save_every_steps):
  """Two hosts of a replica each, with disks of their own in `base`."""

  def start(*arguments, **environment):
    disk = base / environment["GOKU_HOST_INDEX"]
    flag = f"--config.emergency.folder={disk}"
    return runs.start_job(*arguments, flag, **environment)

  return test_processes.two_processes(
    port,
    "train",
    "--config=configs/digits.py:debug",
    f"--workdir={base / 'run'}",
    "--config.mesh.replica=2",
    "--config.mesh.fsdp=4",
    "--config.optim.schedule=constant",
    f"--config.total_steps={total}",
    f"--config.save_every_steps={save_every_steps}",
    "--config.show_every_steps=1000",
    "--config.emergency.every_steps=2",
    run=start,
  )


def finish(processes):
  said = [
    [text.decode() for text in process.communicate(timeout=300)]
    for process in processes
  ]
  assert [process.returncode for process in processes] == [0, 0], said
  return said


def copies(base, name):
  folder = base / name / emergency.INSIDE
  found = [path for path in folder.glob("*") if path.name.isdecimal()]
  return [path for path in found if (path / manifest.NAME).exists()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """A run that nothing kills."""
  base = tmp_path_factory.mktemp("unbroken")
  with training(base, 21461, TOTAL, 4) as processes:
    finish(processes)
  assert not any(copies(base, name) for name in NAMES)  # it is done
  return base / "run"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """A run that was killed some steps after its only checkpoint, of step 4."""
  base = tmp_path_factory.mktemp("killed")
  with training(base, 21471, 4, 4) as processes:
    finish(processes)
  with training(base, 21481, 1000, 1000) as processes:
    while not copies(base, "1"):
      assert all(process.poll() is None for process in processes)
      time.sleep(0.01)
    for process in processes:
      process.kill()
    for process in processes:
      process.communicate()
  return base


def nothing(base):
  pass


def lose_first_host(base):
  shutil.rmtree(base / "0")


def lose_second_host(base):
  shutil.rmtree(base / "1")


def swap_hosts(base):
  """The scheduler numbers them the other way round."""
  (base / "0").rename(base / "other")
  (base / "1").rename(base / "0")
  (base / "other").rename(base / "1")


def lose_manifest(base):
  for copy in copies(base, "1"):
    (copy / manifest.NAME).unlink()


def flip_byte(base):
  for copy in copies(base, "1"):
    files = [path for path in copy.glob("state/**/d/*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def flip_byte_before_the_manifest(base):
  flip_byte(base)
  for copy in copies(base, "1"):
    record = manifest.read(copy)
    (copy / manifest.NAME).unlink()
    del record["digest"], record["files"]
    manifest.write(copy, record)


def start_other_run(base):
  (base / "run" / "emergency_id").unlink()


@pytest.mark.parametrize(
  ("fault", "warning"),
  [
    (nothing, None),
    (lose_first_host, None),
    (swap_hosts, None),
    (lose_second_host, ""),  # replica 0 keeps no copy
    (lose_manifest, "manifest.json is missing"),
    (flip_byte, "differs from its digest"),
    (flip_byte_before_the_manifest, "differs from its checksum"),
    (start_other_run, "is of another run or mesh"),
  ],
)
def test_a_killed_run_goes_on_from_a_copy_or_else_from_its_checkpoint(
  fault, warning, port, killed, unbroken, tmp_path
):
  base = tmp_path / "again"
  shutil.copytree(killed, base)
  newest = max(int(path.name) for path in copies(base, "1"))
  assert 4 < newest < TOTAL
  fault(base)
  with training(base, port, TOTAL, 4) as processes:
    said = finish(processes)
  told = f"step {newest} is read from copies on the hosts"
  assert [told in out for out, _ in said] == [warning is None] * 2
  step = newest if warning is None else 4
  assert all(f"resumed from step {step} of {TOTAL}" in out for out, _ in said)
  if warning:
    assert any(warning in err for _, err in said)
  metrics = [
    [(row["step"], row["loss"]) for row in lines.read(run / "metrics.jsonl")]
    for run in (base / "run", unbroken)
  ]
  assert metrics[0] == metrics[1]
  chex.assert_trees_all_equal(
    runs.read_arrays(base / "run"), runs.read_arrays(unbroken)
  )
