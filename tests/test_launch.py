"""The launchers: what they would run, what they refuse, and a run here."""

import json
import os
import pathlib
import re
import shlex
import subprocess

import pytest

from configs import joint
from goku_jax import config as configs

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
TPU = ("--topology=v5p:8x8x4", "--slices=2")
POD = ("--name=goku", "--image=reg.io/p/goku:1", *TPU)
NEEDED = {
  "local.sh": (),
  "slurm.sh": ("--nodes=2", "--gpus=8"),
  "tpu_vm.sh": ("--tpu=goku", "--zone=us-east5-a"),
  "gke/jobset.sh": (*POD[:2], "--claim=disk", POD[2]),
  "gke/xpk.sh": ("--cluster=c", *POD[:3]),
}
JOB = (
  "train",
  "--config=configs/joint.py:variant=8b,res=720p",
  "--config.sample.prompts=('a cat''s $$HOME',  \"b\")",
  "--workdir=my run/$(x) & 'y' \\ ${name}\nz",
)
PYTHON = [".venv/bin/python", "-m", "goku_jax.train", *JOB[1:]]
# Stands for a program that is not here: writes down what it was given.
RECORD = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" >>"$RECORDS/arguments"
[ -t 0 ] || cat >>"$RECORDS/stdin"
echo "${SAYS:-}"
exit "${STATUS:-0}"
"""


def launch(script, *arguments, env=None):
  """Exit status, stdout and stderr of a launcher, called from elsewhere."""
  done = subprocess.run(
    ["bash", LAUNCH / script, *arguments],
    cwd=LAUNCH.parent.parent,
    env={**os.environ, **(env or {})},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


def dry_run(script, *arguments, job=JOB):
  status, out, err = launch(script, *arguments, "--dry_run", "--", *job)
  assert (status, err) == (0, "")
  return out


def words(text):
  return shlex.split(text, comments=True)


def here_document(text):
  """The words of a command and what it is given on stdin."""
  head, _, body = text.partition(" <<'EOF'\n")
  assert body.endswith("\nEOF\n")
  return words(head.splitlines()[-1]), body.removesuffix("\nEOF\n")


def read_yaml(lines):
  """The part of YAML that the manifest is written in."""
  indent = len(lines[0]) - len(lines[0].lstrip())
  head = lines[0].strip()
  if head == "|-":
    indent = len(lines[1]) - len(lines[1].lstrip())
    assert all(line[:indent].isspace() for line in lines[1:])
    return "\n".join(line[indent:] for line in lines[1:])
  blocks = []
  for line in lines:
    assert line[:indent].strip() == ""
    if line[indent] == " ":
      blocks[-1].append(line)
    else:
      blocks.append([line])
  if head.startswith("- "):
    pad = " " * (indent + 2)
    return [read_yaml([pad + b[0][indent + 2 :], *b[1:]]) for b in blocks]
  if not re.match(r"[\w./-]+:( |$)", head):
    (line,) = lines
    return read_scalar(head)
  pairs = [(b[0].strip().partition(":"), b[1:]) for b in blocks]
  tree = {
    key: read_scalar(value.strip()) if value else read_yaml(below)
    for (key, _, value), below in pairs
  }
  assert len(tree) == len(blocks)
  return tree


def read_scalar(text):
  if text.startswith("["):
    return [read_scalar(part.strip()) for part in text[1:-1].split(",")]
  if text.startswith('"'):
    return json.loads(text)
  return int(text) if text.isdecimal() else text


def manifest(*arguments, job=JOB):
  call, text = here_document(
    dry_run("gke/jobset.sh", "--claim=disk", *arguments, job=job)
  )
  assert call == ["kubectl", "apply", "-f", "-"]
  lines = [x for x in text.splitlines() if not x.lstrip().startswith("#")]
  return read_yaml(lines)


def run_by(tree):
  """The container of a manifest."""
  (slices,) = tree["spec"]["replicatedJobs"]
  (container,) = slices["template"]["spec"]["template"]["spec"]["containers"]
  return container


def in_pod(text):
  """What a pod runs: Kubernetes reads $$ as $."""
  first, *arguments = words(text.replace("$$", "$"))
  assert first == "exec"
  return arguments


@pytest.fixture
def stand_ins(tmp_path):
  """An environment whose programs write down what they are given."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for name in ("gcloud", "kubectl", "sbatch", "scontrol", "srun", "xpk"):
    (folder / name).write_text(RECORD)
    (folder / name).chmod(0o755)
  path = f"{folder}{os.pathsep}{os.environ['PATH']}"
  return {"PATH": path, "RECORDS": str(tmp_path)}


def read(env, name):
  return (pathlib.Path(env["RECORDS"]) / name).read_text()


def recorded(env):
  return read(env, "arguments").removesuffix("\0").split("\0")


@pytest.mark.parametrize("script", NEEDED)
def test_a_launcher_prints_commands_that_parse_and_keep_every_argument(script):
  out = dry_run(script, *NEEDED[script])
  if script == "local.sh":
    job = words(out)[-len(PYTHON) :]
  elif script == "slurm.sh":
    job = re.search(r"^srun (.*)\nstatus=", here_document(out)[1], re.M | re.S)
    job = words(job[1])[-len(PYTHON) :]
  elif script == "gke/jobset.sh":
    job = in_pod(run_by(manifest(*POD))["args"][0])
  elif script == "gke/xpk.sh":
    job = in_pod(words(out)[-1].removeprefix("--command="))
  else:
    job = words(words(out)[-1])[4:]  # --command=cd goku_jax && exec
  assert job == PYTHON


@pytest.mark.parametrize("script", NEEDED)
def test_what_is_missing_or_unknown_is_one_line_and_status_2(script):
  needed = NEEDED[script]
  calls = [[*needed], [*needed, "--"], [*needed, "--", "teach"]]
  calls += [[*needed, word, "--", "train"] for word in ("--x=1", "train", "-n")]
  for i in range(len(needed)):
    calls += [[*needed[:i], *needed[i + 1 :], "--", *JOB]]
    name = needed[i].partition("=")[0]
    said = launch(script, "--dry_run", *calls[-1])[2]
    assert f"missing {name}=" in said
  for call in calls:
    status, out, err = launch(script, "--dry_run", *call)
    assert (status, out, err.count("\n")) == (2, "", 1), (call, err)
    assert err.startswith(f"{pathlib.Path(script).name}: ")


@pytest.mark.parametrize(
  ("script", "option"),
  [
    ("slurm.sh", "--gpus=0"),
    ("slurm.sh", "--nodes=two"),
    ("tpu_vm.sh", "--slices=-1"),
    ("tpu_vm.sh", "--topology=tpu7x:4x4x4"),
    ("tpu_vm.sh", "--tier=cheap"),
    ("gke/jobset.sh", "--topology=v5p:3x3"),
    ("gke/xpk.sh", "--topology=v9:2x2"),
  ],
)
def test_a_value_that_cannot_be_is_one_line_and_status_2(script, option):
  call = (*NEEDED[script], option, "--dry_run", "--", *JOB)
  status, out, err = launch(script, *call)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert option.partition("=")[2] in err


def test_help_is_the_text_that_heads_the_script():
  for script in NEEDED:
    status, out, _ = launch(script, "--help")
    assert status == 0
    assert f"bash launch/{script} " in out
    assert "set -euo" not in out


def test_a_tpu_is_queued_for_by_googles_names():
  out = dry_run("tpu_vm.sh", *NEEDED["tpu_vm.sh"], *TPU, "--tier=spot")
  create, describe, *_ = out.splitlines()
  assert words(create) == [
    *("gcloud", "compute", "tpus", "queued-resources", "create", "goku"),
    *("--zone=us-east5-a", "--accelerator-type=v5p-512"),
    *("--runtime-version=v2-alpha-tpuv5", "--node-count=2", "--spot"),
  ]
  assert words(describe)[3:6] == ["queued-resources", "describe", "goku"]
  assert words(out).count("--node=all") == 3  # copy, install, run


def test_a_tpu_that_is_there_is_used_as_it_is():
  out = dry_run("tpu_vm.sh", *NEEDED["tpu_vm.sh"])
  assert "queued-resources" not in out
  said = words(out)
  assert said.count("tpu-vm") == said.count("--worker=all") == 3
  (install,) = [word for word in said if "launch/install.sh" in word]
  assert install.endswith("\nbash launch/install.sh tpu data text")


def test_a_manifest_restarts_what_was_preempted_however_often():
  tree = manifest(*POD)
  assert (tree["kind"], tree["metadata"]["name"]) == ("JobSet", "goku")
  (rule,) = tree["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (slices,) = tree["spec"]["replicatedJobs"]
  job = slices["template"]["spec"]
  assert slices["replicas"] == 2
  assert job["parallelism"] == job["completions"] == 64
  saved, gone = job["podFailurePolicy"]["rules"]
  assert saved["onExitCodes"] == {"operator": "In", "values": [70, 75]}
  assert gone["onPodConditions"][0]["type"] == "DisruptionTarget"
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "4x8x8",
  }
  (volume,) = pod["volumes"]
  assert volume["persistentVolumeClaim"] == {"claimName": "disk"}
  container = run_by(tree)
  assert container["image"] == "reg.io/p/goku:1"
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert container["command"] == ["bash", "-c"]


@pytest.mark.parametrize("topology", ["v4:4x4x4", "v6e:16x16", "tpu7x:4x4x4"])
def test_a_single_slice_has_one_replica(topology):
  tree = manifest(*POD[:2], f"--topology={topology}")
  (slices,) = tree["spec"]["replicatedJobs"]
  assert slices["replicas"] == 1
  assert slices["template"]["spec"]["parallelism"] in (16, 64)


@pytest.mark.parametrize("status", [0, 1, 70, 75])
def test_slurm_queues_again_what_was_preempted_or_hung(
  status, stand_ins, tmp_path
):
  call, script = here_document(dry_run("slurm.sh", *NEEDED["slurm.sh"]))
  assert {"--ntasks-per-node=1", "--gpus-per-node=8", "--requeue"} < set(call)
  assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in script
  (tmp_path / "script").write_text(script)
  env = {**stand_ins, "SLURM_JOB_ID": "7", "STATUS": str(status)}
  assert launch(tmp_path / "script", env=env)[0] == status
  step = ["srun", "--wait=300", "--cpu-bind=none", *PYTHON]
  again = ["scontrol", "requeue", "7"] if status in (70, 75) else []
  assert recorded(stand_ins) == step + again


@pytest.mark.parametrize("script", ["gke/jobset.sh", "gke/xpk.sh"])
def test_a_dry_run_prints_what_a_run_does(script, stand_ins):
  call = (*NEEDED[script], "--slices=2")
  assert launch(script, *call, "--", *JOB, env=stand_ins)[0] == 0
  out = dry_run(script, *call)
  program, text = here_document(out) if "<<" in out else (words(out), "")
  assert recorded(stand_ins) == program
  assert read(stand_ins, "stdin").removesuffix("\n") == text


def test_a_dry_run_prints_all_that_gcloud_is_given(stand_ins):
  call = (*NEEDED["tpu_vm.sh"], *TPU)
  env = {**stand_ins, "SAYS": "ACTIVE"}
  assert launch("tpu_vm.sh", *call, "--", *JOB, env=env)[0] == 0
  said = words(dry_run("tpu_vm.sh", *call))
  done = recorded(stand_ins)
  assert done.count("gcloud") == said.count("gcloud") == 5
  start = said.index("mkdir")  # packs the checkout, and is no gcloud
  end = said.index("gcloud", start)
  assert done == said[:start] + said[end:]
  files = subprocess.run(
    ["tar", "-tzf", ROOT / ".cache/checkout.tar.gz"],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  assert {"setup.py", "launch/install.sh", "goku_jax/job.py"} < set(files)
  assert not any(name.startswith((".venv/", ".git/")) for name in files)


def test_a_tpu_that_failed_ends_the_wait(stand_ins):
  env = {**stand_ins, "SAYS": "FAILED"}
  call = (*NEEDED["tpu_vm.sh"], *TPU, "--", *JOB)
  status, _, err = launch("tpu_vm.sh", *call, env=env)
  assert (status, err) == (2, "tpu_vm.sh: the TPU goku is FAILED: delete it\n")


def readme_commands():
  text = (LAUNCH / "README.md").read_text().replace("\\\n", " ")
  found = re.findall(r"^    bash (launch/\S+) +(.*-- .*)$", text, re.M)
  assert len(found) == len(NEEDED)
  return found


@pytest.mark.parametrize(("script", "arguments"), readme_commands())
def test_a_command_of_the_readme_names_what_is_there(script, arguments):
  options, job = re.split(r"(?:^| )-- ", arguments)
  name, *flags = shlex.split(job)
  assert dry_run(
    script.removeprefix("launch/"), *shlex.split(options), job=(name, *flags)
  )
  assert (ROOT / "goku_jax" / name / "__main__.py").exists()
  spec, rest = configs.take_config(flags)
  file, colon, argument = spec.partition(":")
  config = configs.read_config(f"{ROOT / file}{colon}{argument}")
  configs.check_overrides(config, [name, *rest])


def test_the_readmes_table_of_slices_is_the_configs():
  rows = (LAUNCH / "README.md").read_text().splitlines()
  topologies = joint.get_config("variant=8b,res=720p").topologies
  for slice_, split in topologies.items():
    (row,) = [row for row in rows if row.startswith(f"| `{slice_}` |")]
    mesh = split.mesh
    assert f"| {mesh.fsdp} x {mesh.sequence} | `{split.remat}` |" in row
    call = (*NEEDED["gke/xpk.sh"][:3], f"--topology={slice_}")
    (kind,) = re.findall(r"--tpu-type=(\S+)", dry_run("gke/xpk.sh", *call))
    shape = "x".join(sorted(slice_.partition(":")[2].split("x"), key=int))
    assert f"| `{kind}`; {shape} |" in row


def test_a_local_job_sees_eight_devices_and_keeps_its_exit_status(tmp_path):
  status, _, err = launch(
    "local.sh",
    "--",
    *("train", "--config=configs/digits.py:debug"),
    *("--config.mesh.fsdp=3", f"--workdir={tmp_path / 'a run'}"),
    env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
  )
  assert status == 2
  assert "does not make 8 devices" in err.splitlines()[-1]
