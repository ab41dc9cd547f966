"""The contract of jobs, mostly by running one as a user does."""

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import ml_collections as mlc
import numpy as np
import pytest

from goku_jax import files, job
from goku_jax.typing import UserError

JOB = '''
"""Does nothing, at length.

Second paragraph."""
import os, time
from absl import flags
from goku_jax import job

flags.DEFINE_string("prompt", "a five", "what to draw")
flags.DEFINE_integer("num_frames", 17, "4k+1 of them")
flags.DEFINE_string("fail", None, "how to end")


def main(config, workdir, prompt, num_frames, fail=None):
  job.check_workdir(workdir, config, same=("model", "seed"))
  if fail == "user":
    raise job.UserError("two lines\\nof advice")
  job.save_config(workdir, config)
  if fail == "crash":
    raise RuntimeError("a fault of ours")
  if fail == "work":
    print("ready", flush=True)
    try:
      time.sleep(30)
    except Exception:
      print("taken for an error", flush=True)
  if fail == "wait":
    with job.preemption() as preempted:
      print("ready", flush=True)
      while not preempted():
        time.sleep(0.01)
      raise job.Preempted("saved at step 3")
  return {
    "prompt": prompt,
    "frames": num_frames,
    "generated": {"accuracy": 0.8125, "loss": float("nan")},
  }


if __name__ == "__main__":
  job.run(main, config="required")
'''

CONFIG = '''
"""An experiment."""
import ml_collections as mlc
from ml_collections import config_dict
from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, debug=False)
  config = mlc.ConfigDict()
  config.seed = 0
  config.total_steps = 100
  config.data = dict(path=config_dict.placeholder(str))
  config.model = dict(
    width=32, patch_size=(1, 2, 2), names=("a",), remat=True, text=None
  )
  config.optim = dict(
    lr=1e-4, betas=(0.9, 0.99), warmup_steps=config.get_ref("total_steps") // 10
  )
  if arg.debug:
    config.total_steps = 10
  return config
'''

COMMON = """
import ml_collections as mlc


def parse_arg(arg, **defaults):
  out = dict(defaults)
  for item in filter(None, (arg or "").split(",")):
    if item not in defaults:
      raise ValueError(f"unknown config arg {item!r}; known: {list(defaults)}")
    out[item] = True
  return mlc.FrozenConfigDict(out)
"""


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "common.py").write_text(COMMON)
  (tmp_path / "configs" / "x.py").write_text(CONFIG)
  (tmp_path / "main.py").write_text(JOB)
  return tmp_path


def command(folder, *args):
  repo = Path(job.__file__).parents[1]
  env = dict(os.environ, PYTHONPATH=str(repo))
  argv = [sys.executable, "-W", "error", str(folder / "main.py"), *args]
  return argv, dict(env=env, cwd=folder, text=True)


def start(folder, *args):
  argv, kwargs = command(folder, *args)
  return subprocess.run(
    argv, **kwargs, capture_output=True, errors="replace", check=False
  )


def test_a_job_prints_and_saves_its_config_and_its_result(folder):
  done = start(
    folder,
    "--config.optim.lr=2",
    "--config=configs/x.py:debug",
    "--workdir=run",
    "--num_frames=5",
    "--noconfig.model.remat",
    "--config.model.patch_size=1,4,4",
    "--config.model.names=a",
    "--config.model.names=b",
    "--config.data.path=None",
    "--config.optim.betas=1,0.5",
    "--json=out/result.json",
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  printed, end = json.JSONDecoder().raw_decode(done.stdout)
  saved = json.loads((folder / "run/config.json").read_text())
  assert printed == saved
  assert saved == {
    "seed": 0,
    "total_steps": 10,
    "data": {"path": None},
    "model": {
      "width": 32,
      "patch_size": [1, 4, 4],
      "names": ["a", "b"],
      "remat": False,
      "text": None,
    },
    "optim": {"lr": 2.0, "betas": [1.0, 0.5], "warmup_steps": 1},
  }
  config = job.load_config(folder / "run")
  assert config.model.patch_size == (1, 4, 4)
  assert isinstance(config.optim.lr, float)
  with pytest.raises(AttributeError):
    config.seeed = 1
  result = json.loads((folder / "out/result.json").read_text())
  assert result == {
    "prompt": "a five",
    "frames": 5,
    "generated": {"accuracy": 0.8125, "loss": None},
  }
  assert [line.split() for line in done.stdout[end:].strip().splitlines()] == [
    ["prompt", "a", "five"],
    ["frames", "5"],
    ["generated.accuracy", "0.8125"],
    ["generated.loss", "nan"],
  ]


RUN = ("--config=configs/x.py", "--workdir=run")


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ((*RUN, "--promt=x"), "unknown flag --promt; did you mean --prompt?"),
    ((*RUN, "--zzzz=x"), "unknown flag --zzzz; --help"),
    ((*RUN, "--num_frames=x"), "--num_frames=x"),
    ((*RUN, "--num_frames"), "--num_frames"),
    ((*RUN, "stray"), "unexpected argument 'stray'"),
    ((*RUN, "--config.model.widht=3"), "did you mean model.width?"),
    ((*RUN, "--config.width=3"), "did you mean model.width?"),
    ((*RUN, "--config.modle.width=3"), "did you mean model.width?"),
    ((*RUN, "--config.seed.x=3"), "unknown config key 'seed.x'"),
    ((*RUN, "--config.seed=4.0"), "config.seed takes an int, not '4.0'"),
    ((*RUN, "--config.optim.lr=x"), "config.optim.lr takes a float, not 'x'"),
    ((*RUN, "--config.model.remat=x"), "config.model.remat takes true or"),
    ((*RUN, "--config.model.patch_size=1,2"), "patch_size takes a tuple like"),
    ((*RUN, "--config.model.patch_size=1,2,2.5"), "a tuple like (1, 2, 2)"),
    ((*RUN, "--config.model.patch_size=1,2,True"), "a tuple like (1, 2, 2)"),
    ((*RUN, "--config.model.patch_size=(1,"), "takes a tuple like (1, 2, 2)"),
    ((*RUN, "--config.model.names=1,2"), "config.model.names takes a tuple"),
    ((*RUN, "--config.model={}"), "config.model is a section"),
    ((*RUN, "--config.model.text=x"), "config.model.text is None"),
    ((*RUN, "--noconfig.seed"), "noconfig.seed"),
    ((*RUN, "--config.=3"), "unknown config key"),
    ((*RUN, "--fail=user"), "two lines of advice"),
    (("--config=configs/x.py",), "missing --workdir"),
    (("--workdir=run",), "missing --config"),
    (("--workdir=run", "--config"), "--config needs a file"),
    (("--workdir=run", "--config.seed=1"), "--config.seed needs --config="),
    (("--workdir=run", "--config=configs/y.py"), "did you mean configs/x.py"),
    (("--workdir=run", "--config=nowhere/x.py"), "no file 'nowhere/x.py'"),
    (("--workdir=run", "--config=configs/x.py:big"), "config arg 'big'"),
    (("--workdir=main.py", RUN[0]), "--workdir: cannot write in 'main.py'"),
    (("--workdir=main.py/run", RUN[0]), "--workdir: cannot write in"),
    (("--workdir=/proc/run", RUN[0]), "--workdir: cannot write in"),
    ((*RUN, "--json=main.py/x.json"), "--json: cannot write in 'main.py'"),
    ((*RUN, "--json=configs"), "--json=configs is a folder"),
    ((*RUN, "--flagfile=nowhere"), "nowhere"),
  ],
)
def test_a_mistake_is_one_line_and_status_2(folder, args, words):
  done = start(folder, *args)
  assert done.returncode == 2, done.stderr
  assert len(done.stderr.splitlines()) == 1, done.stderr
  assert words in done.stderr
  assert not (folder / "run/config.json").exists()


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("def get_config(:", "SyntaxError: invalid syntax (bad.py:1)"),
    ("import nowhere", "ModuleNotFoundError"),
    ("x = 1", "get_config"),
    ("def get_config():\n  return {}", "must return a ConfigDict"),
    ("def get_config():\n  return 1 / 0", "division by zero (bad.py:2)"),
    (
      "import ml_collections as m\n"
      "def get_config():\n  return m.ConfigDict(dict(a=dict(b=[1])))",
      "config.a.b is a list; use a tuple",
    ),
    (
      "import ml_collections as m\n"
      "def get_config():\n  return m.ConfigDict(dict(a=print))",
      "config.a is a builtin_function_or_method",
    ),
  ],
)
def test_a_broken_config_file_says_where(folder, source, words):
  (folder / "bad.py").write_text(source)
  done = start(folder, "--config=bad.py", "--workdir=run")
  assert done.returncode == 2, done.stderr
  assert len(done.stderr.splitlines()) == 1, done.stderr
  assert words in done.stderr


def test_help_explains_the_job_its_flags_and_the_keys(folder):
  bare = start(folder, "--help")
  assert bare.returncode == 0, bare.stderr
  assert bare.stdout.startswith("Does nothing, at length.\n")
  for words in ("Second paragraph", "--prompt", "4k+1 of them", "'a five'"):
    assert words in bare.stdout
  keys = start(folder, "--help", "--config=configs/x.py")
  assert "--config.model.patch_size" in keys.stdout
  assert "= (1, 2, 2)" in keys.stdout


def test_a_fault_of_ours_keeps_its_traceback_and_is_status_1(folder):
  done = start(folder, *RUN, "--fail=crash")
  assert done.returncode == 1
  assert "Traceback" in done.stderr
  assert "a fault of ours" in done.stderr


@pytest.mark.parametrize(
  ("fail", "says"),
  [("wait", "saved at step 3"), ("work", "what is whole is kept; run it ag")],
)
def test_sigterm_lets_the_job_save_and_is_status_75(folder, fail, says):
  argv, kwargs = command(folder, *RUN, f"--fail={fail}")
  with subprocess.Popen(
    argv, **kwargs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as process:
    while "ready" not in process.stdout.readline():
      assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
  assert process.returncode == 75
  assert errors.startswith(f"preempted: {says}")
  assert errors.count("\n") == 1


def test_sigterm_is_left_as_it_was():
  before = signal.getsignal(signal.SIGTERM)
  with job.preemption() as preempted:
    assert not preempted()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while not preempted() and time.monotonic() < deadline:
      pass
    assert preempted()
  assert signal.getsignal(signal.SIGTERM) is before


def test_bytes_that_are_no_text_do_not_break_the_printing(folder):
  argv, kwargs = command(folder, *RUN)
  kwargs["text"] = False
  argv = [*argv, b"--prompt=\xff\xfe five"]
  done = subprocess.run(argv, **kwargs, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr
  assert b"udcff" in done.stdout


def test_a_workdir_of_another_model_is_refused_and_kept(tmp_path):
  config = mlc.ConfigDict(
    dict(seed=0, total_steps=9, model=dict(width=32, size=(1, 2)), modelled=1)
  )
  same = ("model", "seed")
  job.check_workdir(tmp_path, config, same=same)
  assert not list(tmp_path.iterdir())
  job.save_config(tmp_path, config)
  config.total_steps, config.modelled = 20, 2  # may change
  job.check_workdir(tmp_path, config, same=same)
  config.model.width = 64
  config.model.size = (1, 3)
  config.total_steps = 30
  with pytest.raises(job.UserError) as error:
    job.check_workdir(tmp_path, config, same=same)
  assert "model.width is 32 there and 64 here" in str(error.value)
  assert "model.size is (1, 2) there and (1, 3) here" in str(error.value)
  assert job.load_config(tmp_path).total_steps == 9


def test_a_place_may_move_but_not_come_or_go(tmp_path):
  config = mlc.ConfigDict(dict(data=dict(path="here", num=3)))
  job.save_config(tmp_path, config)
  check = lambda: job.check_workdir(
    tmp_path, config, same=("data",), moves=("data.path",)
  )
  config.data.path = "there"
  check()
  with config.ignore_type():
    config.data.path = None
  with pytest.raises(
    job.UserError, match=r"data\.path is 'here' there and None"
  ):
    check()
  config.data.path, config.data.num = "here", 4
  with pytest.raises(job.UserError, match=r"data\.num is 3 there and 4 here"):
    check()
  job.check_workdir(tmp_path, config, same=("data",), free=("data.num",))


def test_only_folders_of_a_disk_are_written_to():
  with pytest.raises(job.UserError, match="only folders of a disk"):
    job.make_folder("gs://bucket/run", "workdir")


def test_a_workdir_without_a_run_or_with_a_broken_one_is_a_mistake(tmp_path):
  with pytest.raises(job.UserError, match="holds no run"):
    job.load_config(tmp_path / "absent")
  (tmp_path / "config.json").write_text('{"seed": ')
  with pytest.raises(job.UserError, match="cannot be read"):
    job.load_config(tmp_path)


def test_json_is_whole_strict_and_plain(tmp_path):
  path = tmp_path / "x.json"
  job.write_json(path, {"b": np.float32(0.5), "a": np.arange(2), "c": np.inf})
  assert json.loads(path.read_text()) == {"a": [0, 1], "b": 0.5, "c": None}
  with pytest.raises(TypeError):
    job.write_json(path, {"f": object()})
  assert json.loads(path.read_text())["b"] == 0.5


def test_metrics_hold_each_step_once_after_a_resume(tmp_path):
  with job.Writers(tmp_path) as writers:
    for step in range(6):
      writers.write_scalars(step, {"loss": np.float32(step)})
    writers.write_image(0, "batch", np.zeros((8, 6, 3), np.uint8))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 6, "lo')  # killed while writing
  with job.Writers(tmp_path, start=4) as writers:
    for step in range(4, 7):
      writers.write_scalars(step, {"loss": -step, "rate": float("nan")})
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row["step"] for row in rows] == list(range(7))
  assert [row["loss"] for row in rows] == [0, 1, 2, 3, -4, -5, -6]
  assert rows[-1]["rate"] is None
  events = list((tmp_path / "tensorboard").glob("events*"))
  assert sum(len(event.read_bytes()) for event in events) > 300


def test_progress_without_a_terminal_prints_first_and_last(capsys):
  with job.Progress(200, 100, "train", every_s=1e9) as progress:
    for done in range(101, 201):
      progress.update(done, loss=0.5, tokens_per_second=12345.6, mfu=0.213)
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    "train 101/200, loss 0.5000, 12,346 tokens/s, MFU 21.3%",
    "train 200/200, loss 0.5000, 12,346 tokens/s, MFU 21.3%, 0:00 left",
  ]


def test_progress_on_a_terminal_is_a_bar():
  ours, theirs = pty.openpty()
  source = (
    "from goku_jax import job\n"
    "with job.Progress(3, 0, 'train') as progress:\n"
    "  for done in (1, 2, 3):\n"
    "    progress.update(done, loss=0.25, mfu=0.5)\n"
  )
  subprocess.run(
    [sys.executable, "-c", source],
    stderr=theirs,
    cwd=Path(job.__file__).parents[1],
    check=True,
  )
  os.close(theirs)
  shown = os.read(ours, 65536).decode()
  os.close(ours)
  assert "train |" in shown
  assert "3/3, loss 0.2500, MFU 50.0%, 0:00 left" in shown


def test_importing_job_is_light():
  source = (
    "import sys, goku_jax.job; print({'jax', 'torch', 'tensorboardX', "
    "'tqdm', 'flax', 'grain'} & set(sys.modules))"
  )
  shown = subprocess.check_output(
    [sys.executable, "-c", source], cwd=Path(job.__file__).parents[1], text=True
  )
  assert shown == "set()\n"


def test_a_value_of_the_command_line_is_no_code(folder):
  harm = "__import__('pathlib').Path('harm').touch()"
  for key in ("model.patch_size", "data.path"):
    start(
      folder,
      "--config=configs/x.py",
      "--workdir=run",
      f"--config.{key}={harm}",
      f"--prompt={harm}",
    )
  assert (folder / "run").exists()
  assert not list(folder.rglob("harm"))


def test_a_compilation_cache_open_to_others_is_refused(folder, monkeypatch):
  """Who can write there can run code in the job."""
  cache = folder / "cache"
  args = "--config=configs/x.py", "--workdir=run"
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
  assert start(folder, *args).returncode == 0
  assert stat.S_IMODE(cache.stat().st_mode) == 0o700
  cache.chmod(0o770)
  done = start(folder, *args)
  assert done.returncode == 2
  assert done.stderr == (
    f"error: JAX_COMPILATION_CACHE_DIR={cache} is open to others: chmod 700"
    f" {cache}\n"
  )


@pytest.mark.parametrize(
  ("path", "says"),
  [
    ("gs://bucket/cache", "only a folder of a disk can be private"),
    ("/dev/null", "File exists|Not a directory"),
  ],
)
def test_a_folder_that_cannot_be_private_is_refused(path, says):
  with pytest.raises(UserError, match=says):
    files.make_private(path, "CACHE")


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
  tmp_path.chmod(0o700)
  files.make_private(str(tmp_path), "CACHE")
  monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
  with pytest.raises(UserError, match="belongs to user"):
    files.make_private(str(tmp_path), "CACHE")
