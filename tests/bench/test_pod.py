"""The first hour: sound devices pass, and what is not sound is named."""

import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.bench import __main__ as bench
from goku_jax.bench import made_up, pod, pod_devices, pod_links, pod_steps
from goku_jax.models import attention
from goku_jax.parallel import mesh as meshes
from goku_jax.plan import step
from goku_jax.typing import UserError
from tests import runs

SIZES = pod_devices.PRETEND
WHO = [f"device {i} of host-{i // 4}" for i in range(8)]


def short(config=None, topology=None):
  """Checks by name."""
  found = pod.run(config or runs.read_config(), topology, short=True)
  return {check.name: check for check in found}


def test_the_short_form_passes_on_sound_devices():
  found = short(runs.read_config(mesh__fsdp=2, mesh__sequence=4))
  assert all(check.passed for check in found.values()), found
  kinds = ("all-gather", "reduce-scatter", "all-to-all", "permute")
  assert list(found) == [
    "devices",
    "matrix products",
    "memory",
    "equal bits",
    "mesh",
    *(f"{kind} over fsdp" for kind in kinds),
    *(f"{kind} over sequence" for kind in kinds),
  ]
  assert found["equal bits"].figure == "1 results of 8 devices"


def test_a_device_whose_bits_differ_is_named():
  rows = []
  for device in pod_devices.local_devices():
    x_NN = pod_devices.make_input(device, SIZES.side)
    if device.id == 5:
      x_NN = x_NN.at[3, 4].multiply(1.5)
    rows.append(pod_devices.measure(x_NN, SIZES))
  table, who = pod_devices.gather(rows)
  *_, bits = pod_devices.judge(table, who, SIZES, slow=np.inf)
  assert not bits.passed
  host = os.uname().nodename
  assert bits.figure == f"2 results of 8 devices; device 5 of {host} differs"


@pytest.mark.parametrize(
  ("column", "name"), [(0, "matrix products"), (1, "memory")]
)
def test_a_slow_device_is_named_with_its_host(column, name):
  table = np.ones((8, 3))
  assert all(check.passed for check in pod_devices.judge(table, WHO, SIZES))
  table[6, column] = 1.29
  assert all(check.passed for check in pod_devices.judge(table, WHO, SIZES))
  table[6, column] = 1.5
  found = pod_devices.judge(table, WHO, SIZES)
  (check,) = [check for check in found if not check.passed]
  assert check.name == name
  assert "device 6 of host-1 takes 1.50 times the median" in check.figure
  assert check.figure.count("device") == 1


def test_of_two_devices_that_differ_either_may_be_wrong():
  table = np.ones((2, 3))
  table[1, 2] = 2
  *_, bits = pod_devices.judge(table, WHO[:2], SIZES)
  assert "device 0 of host-0 differs" in bits.figure
  assert "device 1 of host-0 differs" in bits.figure


def test_an_exchange_that_gives_a_device_wrong_numbers_names_it():
  mesh = meshes.make_mesh(fsdp=2, sequence=4)
  for kind, exchange in pod_links.exchanges("sequence", 4).items():
    send, expect, share = exchange

    def send_wrongly(x, send=send):
      place = jax.lax.axis_index(("fsdp", "sequence"))
      return send(x) + (place == 6)

    found = pod_links.check_exchange(
      mesh, "sequence", kind, send_wrongly, expect, share, SIZES.gathered
    )
    device = mesh.devices.flat[6].id
    assert not found.passed
    assert f"device {device} of" in found.figure
    assert found.figure.count("wrong numbers") == 1


def test_another_number_of_devices_fails_in_one_line_with_status_1(capsys):
  with pytest.raises(SystemExit) as error:
    bench.main(
      *("pod", 1, 17, 256, 128, "float32", []),
      config=runs.read_config(),
      topology="v5e:2x2",
      short=True,
    )
  assert error.value.code == "1 of 9 checks failed"  # Python's status is 1
  lines = capsys.readouterr().out.splitlines()
  (line,) = [line for line in lines if line.startswith("FAIL")]
  assert line.split() == [
    "FAIL",
    "devices",
    "8",
    "of",
    "cpu",
    "on",
    "1",
    "host;",
    "v5e:2x2",
    "has",
    "4",
  ]


def test_the_kind_of_chip_is_compared_as_well_as_the_number():
  check = pod.check_devices("v5e:2x4")
  assert not check.passed
  assert check.figure == "8 of cpu on 1 host; v5e:2x4 has 8"


def test_a_mesh_that_does_not_fit_fails_and_what_needs_it_is_left_out():
  found = short(runs.read_config(mesh__fsdp=3))
  assert list(found)[-1] == "mesh"
  assert not found["mesh"].passed
  assert "does not make 8 devices" in found["mesh"].figure


def test_a_topology_that_does_not_exist_is_refused():
  with pytest.raises(UserError, match="name one as"):
    short(topology="v9:2x2")


def test_kernels_are_checked_on_segments_on_padding_and_on_one_segment():
  found = {name: set(x.tolist()) for name, x in pod_steps._packs(256).items()}
  assert found == {"packed": {1, 2, 3, 4}, "padded": {0, 1}, "whole": {1}}


def test_a_kernel_that_lets_segments_meet_fails_where_there_are_some():
  def attend(q, k, v, q_ids, k_ids):
    return attention.attend(q, k, v, jnp.ones_like(q_ids), k_ids * 0 + 1)

  packs = pod_steps._packs(128)
  for name in ("packed", "whole"):
    found = pod_steps.check_kernel(name, attend, packs[name], 32)
    assert found.passed == (name == "whole")


def test_a_host_whose_kernel_gives_no_numbers_is_named():
  table = np.array([[0.001], [np.nan]])
  check = pod_steps.judge_kernel("splash, whole", table, WHO[::4])
  assert not check.passed
  assert "device 4 of host-1 is nan off" in check.figure


def test_a_made_up_batch_is_as_the_step_takes_it():
  config = runs.read_config(mesh__fsdp=2, mesh__sequence=4)
  lowered = step.lower_step(config, jax.devices())
  batch = made_up.make_batch(config, lowered.model, lowered.mesh, (1, 8, 8), 1)
  wanted = step.abstract_batch(config, lowered.model, lowered.mesh)
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
    name: (x.shape, x.dtype) for name, x in wanted.items()
  }
  assert (batch["segment_ids_BL"] == 1).sum() == 8 * 64  # of 80, 8 x 8 are


def test_a_loss_that_is_not_finite_fails():
  config = runs.read_config()
  judge = lambda *losses: pod_steps.judge_steps(losses, 1.0, config, None)[0]
  assert judge(2.0, 1.0) == ("2 steps", True, "loss 2 to 1")
  for loss in (np.nan, np.inf):
    assert not judge(2.0, loss, 1.0).passed


def first_hour(*flags):
  """Lines of the script by name, its errors, and its status."""
  done = subprocess.run(
    ["bash", runs.ROOT / "launch/first_hour.sh", *flags],
    cwd=runs.ROOT.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  lines = done.stdout.splitlines()
  return {line[6:34].strip(): line for line in lines}, done.stderr, done


@pytest.mark.slow
def test_the_whole_hour_passes_on_pretend_devices(tmp_path):
  workdir, figures = tmp_path / "run", tmp_path / "figures.json"
  flags = ("--config=configs/digits.py:debug", f"--workdir={workdir}")
  lines, err, done = first_hour(*flags, f"--json={figures}")
  assert done.returncode == 0, done.stdout + err
  assert all(line.startswith("pass  ") for line in lines.values())
  assert {"attention", "20 steps", "fastest step"} <= lines.keys()
  assert "resumed from step" in lines["save, kill, restore"]
  checks = json.loads(figures.read_text())["checks"]
  assert set(lines) == {*checks, "save, kill, restore"}
  (logs,) = pathlib.Path(f"{workdir}.logs").iterdir()
  assert {path.name for path in logs.iterdir()} == {"checks", "first", "second"}
  _, err, done = first_hour(*flags)
  assert done.returncode == 2
  assert (
    err == f"first_hour.sh: {workdir} is there already; name a new --workdir\n"
  )


@pytest.mark.slow
def test_the_short_hour_fails_with_status_1_and_writes_the_figures(tmp_path):
  figures = tmp_path / "figures.json"
  lines, err, done = first_hour(
    "--config=configs/digits.py:debug",
    *("--short", "--topology=v5e:2x2", f"--json={figures}"),
  )
  assert done.returncode == 1
  assert err.splitlines()[-1] == "1 of 9 checks failed"
  failed = [name for name, line in lines.items() if line.startswith("FAIL")]
  assert failed == ["devices"]
  checks = json.loads(figures.read_text())["checks"]
  assert not checks.pop("devices")["passed"]
  assert all(check["passed"] for check in checks.values())
