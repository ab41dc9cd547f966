"""What every job shares: flags, exit status, result file, metrics, progress.

A job is a `main` whose parameters name the flags it takes:

  flags.DEFINE_integer("seed", 0, "of the noise")

  def main(workdir, seed):
    "..."
    return {"seconds": 1.5}  # printed, and written to --json

  if __name__ == "__main__":
    job.run(main)

A parameter without a default is a flag that must be given. `config` and
`workdir` need no definition: `config` is the ConfigDict of
`--config=FILE.py[:ARG]`, with `--config.section.key=value` applied.

Exit status: 0 done; 2 a mistake of the user, told in one line on stderr;
75 preempted with everything saved; 70 a process that hung (train/watchdog.py);
1 a result that is `Failed`, or anything else, with its traceback. SIGTERM and
Ctrl-C preempt; a second Ctrl-C ends a job at once with 130.
"""

import contextlib
import inspect
import os
import re
import signal
import sys
import threading

from absl import flags
from ml_collections import config_flags

from goku_jax import config as configs
from goku_jax.config import check_workdir, load_config, save_config
from goku_jax.files import make_folder, make_private, to_json, write_json
from goku_jax.metrics import Progress, Writers
from goku_jax.typing import UserError

__all__ = [
  "Failed",
  "Preempted",
  "Progress",
  "UserError",
  "Writers",
  "check_workdir",
  "load_config",
  "make_folder",
  "preemption",
  "run",
  "save_config",
  "write_json",
]

FLAGS = flags.FLAGS
# Who can write there can run code in every process that reads it.
CACHE = "JAX_COMPILATION_CACHE_DIR"
PREEMPTED = 75  # EX_TEMPFAIL: run the same command again
HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


class Preempted(SystemExit):
  """The job was asked to stop and has saved everything.

  It may come anywhere, and what handles errors there, asyncio's callbacks
  among it, lets only a SystemExit pass.
  """


class Failed(SystemExit):
  """The job has a result, and it is a bad one: status 1, told in a line."""

  def __init__(self, told: str, result: dict):
    super().__init__(told)
    self.result = result


def run(main, *, config: str | None = None):
  """Calls `main` with its flags and exits with the job's status.

  Args:
    main: its parameters name its flags; it returns a dict of results or None.
    config: whether `--config` is "required", "optional" or (None) refused.
  """
  # A prompt may hold bytes that no encoding prints.
  sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
  signal.signal(signal.SIGTERM, _stop)
  signal.signal(signal.SIGINT, _stop)
  try:
    arguments = _parse(main, config, sys.argv)
    if arguments is not None:
      if os.environ.get(CACHE):
        make_private(os.environ[CACHE], CACHE)
      _finish(main(**arguments))
    sys.exit(0)
  except UserError as error:
    _exit(2, f"error: {error}")
  except Failed as error:
    _write(error.result)
    raise
  except Preempted as error:
    _exit(PREEMPTED, f"preempted: {error}")


def _stop(number, frame):
  """Ends a job where it stands: what is on the disk is whole at any time.

  Only a loop that would lose steps asks for `preemption` instead.
  """
  signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough
  signal.signal(signal.SIGINT, _end_at_once)
  raise Preempted("what is whole is kept; run it again to go on")


def _end_at_once(number, frame):
  """Waits for nothing: what is whole stays so, what is being saved is lost."""
  os.write(2, b"ended at once, by a second Ctrl-C\n")
  os._exit(128 + signal.SIGINT)


def _exit(status, message):
  print(" ".join(message.split()), file=sys.stderr)
  sys.exit(status)


def _parse(main, config_mode, argv):
  """Arguments of `main` from the command line; None after `--help`."""
  flags.DEFINE_string("json", None, "file that receives the printed result")
  names = list(inspect.signature(main).parameters)
  if "workdir" in names:
    flags.DEFINE_string("workdir", None, "folder of the run")
  config = spec = None
  try:
    argv = FLAGS.read_flags_from_files(argv, force_gnu=False)
  except (flags.Error, OSError) as error:
    raise UserError(error) from error
  if config_mode:
    spec, argv = configs.take_config(argv)
  if spec:
    config = configs.read_config(spec)
    before = config.to_dict()
    configs.check_overrides(config, argv)
    config_flags.DEFINE_config_dict("config", config, sys_argv=argv)
  if HELP & set(argv):
    _print_help(main, config_mode, spec, config)
    return None
  _parse_flags(argv, config, [*names, "json"])
  if config_mode == "required" and not config:
    raise UserError("missing --config=FILE.py; --help explains")
  if config:
    configs.check_values(config, before)
  arguments = _arguments(main, config)
  _check_result_file(FLAGS.json)
  if config:
    print(to_json(config.to_dict()))
  return arguments


def _arguments(main, config):
  """The flags' values under the names of `main`'s parameters."""
  arguments = {}
  for name, parameter in inspect.signature(main).parameters.items():
    value = config if name == "config" else FLAGS[name].value
    if value is not None:
      arguments[name] = value
    elif parameter.default is parameter.empty:
      raise UserError(f"missing --{name}: {FLAGS[name].help}; --help explains")
  return arguments


def _check_result_file(path):
  if path:  # told before hours of work, not after
    make_folder(os.path.dirname(path) or ".", "json")
    if os.path.isdir(path):
      raise UserError(f"--json={path} is a folder; name a file")


def _parse_flags(argv, config, names):
  """Parses all flags; every mistake becomes one line."""
  try:
    extra = FLAGS(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    name = f"--{error.flagname}"
    if name.startswith("--config.") and not config:
      raise UserError(f"{name} needs --config=FILE.py") from error
    near = configs.near(name, [f"--{n}" for n in names])
    near = near or "; --help lists them"
    raise UserError(f"unknown flag {name}{near}") from error
  except flags.IllegalFlagValueError as error:
    name, value = re.match(r"flag --([^=]+)=(.*?): ", str(error), re.S).groups()
    if not name.startswith("config."):
      raise UserError(str(error).removeprefix("flag ")) from error
    kind = configs.type_name(config, name.removeprefix("config."))
    raise UserError(f"{name} takes {kind}, not {value!r}") from error
  except flags.Error as error:
    raise UserError(error) from error
  if extra:
    raise UserError(f"unexpected argument {extra[0]!r}; flags are --name=value")


def _print_help(main, config_mode, spec, config):
  print(inspect.getdoc(sys.modules[main.__module__]) or "", end="\n\n")
  rows = []
  if config_mode:
    rows = [("--config=FILE.py[:ARG]", f"experiment ({config_mode})")]
    rows += [("--config.section.key=value", "overrides one of its keys")]
  names = [n for n in inspect.signature(main).parameters if n != "config"]
  for name in (*names, "json"):
    default = FLAGS[name].default
    shown = "" if default is None else f" (default: {default!r})"
    rows.append((f"--{name}", f"{FLAGS[name].help}{shown}"))
  _print_rows(rows)
  if config:
    print(f"\nKeys of {spec}:")
    leaves = configs.flatten(config.to_dict())
    _print_rows([(f"--config.{k}", f"= {v!r}") for k, v in leaves.items()])


def _finish(result):
  if result:
    _print_rows([(k, _shown(v)) for k, v in configs.flatten(result).items()])
  _write(result or {})


def _write(result):
  if FLAGS.json:
    write_json(FLAGS.json, result)


def _print_rows(rows):
  width = max((len(name) for name, _ in rows), default=0)
  for name, value in rows:
    print(f"{name:<{width}}  {value}")


def _shown(value):
  value = value.tolist() if hasattr(value, "tolist") else value
  return f"{value:.6g}" if isinstance(value, float) else value


@contextlib.contextmanager
def preemption(several: bool = False):
  """A function that tells whether SIGTERM or Ctrl-C has come; a loop asks it.

  Args:
    several: whether there are several processes: JAX takes their SIGTERM, and
      tells all of them; Ctrl-C is made one.

  with job.preemption() as preempted:
    for step in range(total):
      if preempted():
        save(step)
        raise job.Preempted(f"saved at step {step}")
  """
  asked = threading.Event()

  def ask(number, frame):
    asked.set()
    signal.signal(signal.SIGINT, _end_at_once)
    if number == signal.SIGINT:
      print("stopping; Ctrl-C again ends at once", file=sys.stderr, flush=True)
      if several:
        os.kill(os.getpid(), signal.SIGTERM)

  numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, ask) for number in numbers}
  try:
    yield asked.is_set
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
