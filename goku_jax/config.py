"""Experiments: read from a file, overridden, saved with the run, read back.

`--config=FILE.py[:ARG]` names a file with a `get_config`; overrides are parsed
by ml_collections, and what it lets through is checked here: unknown keys
without a hint, whole sections, the length and types of tuples, the word None.
"""

import difflib
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback

import ml_collections as mlc

from goku_jax import files
from goku_jax.typing import UserError

LEAVES = (bool, int, float, str, tuple, type(None))


def near(name, known) -> str:
  """'; did you mean a or b?', or nothing where nothing is near."""
  names = " or ".join(difflib.get_close_matches(name, known, 2, cutoff=0.7))
  return f"; did you mean {names}?" if names else ""


def take_config(argv):
  """The value of `--config` and the other arguments."""
  spec, rest, items = None, [], iter(argv)
  for item in items:
    name, equals, value = item.partition("=")
    if name in ("-config", "--config"):
      spec = value if equals else next(items, "")
      if not spec:
        raise UserError("--config needs a file: --config=FILE.py[:ARG]")
    else:
      rest.append(item)
  return spec, rest


def read_config(spec):
  """The locked ConfigDict that `FILE.py[:ARG]` stands for."""
  path, colon, arg = spec.partition(":")
  if not os.path.isfile(path):
    folder = os.path.dirname(path)
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    known = [os.path.join(folder, n) for n in names if n.endswith(".py")]
    raise UserError(f"--config: no file {path!r}{near(path, known)}")
  # Experiments import their neighbours as `configs.x`, from any folder.
  root = os.path.dirname(os.path.dirname(os.path.abspath(path)))
  if root not in sys.path:
    sys.path.append(root)
  try:
    module_spec = importlib.util.spec_from_file_location("goku_config", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    takes_arg = bool(inspect.signature(module.get_config).parameters)
    if colon and not takes_arg:
      raise UserError(f"the file takes no argument, not {arg!r}")
    config = module.get_config(arg) if colon else module.get_config()
    if not isinstance(config, mlc.ConfigDict):
      raise UserError("get_config must return a ConfigDict")
    _check_leaves(config.to_dict())
  except ValueError as error:  # a bad argument explains itself
    raise UserError(f"--config={spec}: {error}") from error
  except Exception as error:
    at = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(at.filename)}:{at.lineno}"
    if isinstance(error, SyntaxError):
      where = f"{os.path.basename(error.filename)}:{error.lineno}"
    message = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
    raise UserError(f"--config={spec}: {message} ({where})") from error
  return config.lock()


def _check_leaves(config):
  """Refuses what neither JSON nor the command line can carry."""
  for key, value in flatten(config).items():
    values = value if isinstance(value, tuple) else (value,)
    if not isinstance(value, LEAVES) or not all(
      isinstance(v, LEAVES) for v in values
    ):
      hint = "; use a tuple" if isinstance(value, list) else ""
      raise UserError(f"config.{key} is a {type(value).__name__}{hint}")


def check_overrides(config, argv):
  """Refuses overrides of keys that are not there, of sections and of None."""
  leaves = flatten(config.to_dict())
  for item in argv[1:]:
    match = re.match(r"--?(?:no)?config\.([^=]*)", item)
    if not match:
      continue
    key = match[1]
    if key in leaves:
      if _type_of(config, key) not in LEAVES[:-1]:
        raise UserError(f"config.{key} is {leaves[key]}: it has no type to set")
      continue
    inside = [k for k in leaves if k.startswith(key + ".")]
    if inside:
      raise UserError(
        f"config.{key} is a section; set its keys, as --config.{inside[0]}=..."
      )
    last = key.rpartition(".")[2]  # the right key of the wrong section
    moved = [k for k in leaves if k.rpartition(".")[2] == last]
    hint = near(key, leaves) or (near(moved[0], moved) if moved else "")
    hint = hint or "; --help with --config lists the keys"
    raise UserError(f"unknown config key {key!r}{hint}")


def check_values(config, before):
  """Checks what ml_collections lets through: tuples and the word None.

  A tuple of numbers keeps its length, one of strings may change it.
  """
  before = flatten(before)
  for key, value in flatten(config.to_dict()).items():
    old = before[key]
    if old is None and value == "None":
      _set(config, key, None)
    if isinstance(old, tuple) and old:
      words = isinstance(old[0], str)
      kinds = [str] * len(value) if words else [type(v) for v in old]
      if len(value) == len(kinds):  # an int will do for a float, as elsewhere
        value = tuple(map(_as_float, value, kinds))
      if [type(v) for v in value] != kinds:
        raise UserError(f"config.{key} takes a tuple like {old}, not {value}")
      _set(config, key, value)


def _as_float(value, kind):
  return float(value) if kind is float and type(value) is int else value


def flatten(tree, prefix=""):
  """`{"a.b": leaf}` of nested dicts."""
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      out |= flatten(value, f"{prefix}{key}.")
    else:
      out[f"{prefix}{key}"] = value
  return out


def _section(config, key):
  *sections, name = key.split(".")
  for section in sections:
    config = config[section]
  return config, name


def _set(config, key, value):
  section, name = _section(config, key)
  section[name] = value


def _type_of(config, key):
  section, name = _section(config, key)
  return section.get_type(name)


def type_name(config, key) -> str:
  """What `config.key` takes, in words."""
  kind = _type_of(config, key)
  if kind is tuple:
    section, name = _section(config, key)
    return f"a tuple like {section[name]}"
  return {int: "an int", bool: "true or false"}.get(kind, f"a {kind.__name__}")


def make_settings(kind, found: dict, section: str):
  """A section of a config as the NamedTuple `kind`, whose keys are all its own.

  Raises:
    UserError: a key is missing or unknown.
  """
  other = found.keys() ^ set(kind._fields)
  if other:
    raise UserError(
      f"{section}: {', '.join(sorted(other))} missing or unknown; its settings"
      f" are {', '.join(kind._fields)}"
    )
  return kind(**found)


def save_config(workdir, config):
  """Writes the resolved config beside the checkpoints."""
  files.write_json(os.path.join(workdir, "config.json"), config.to_dict())


def load_config(workdir, stage: str | None = None) -> mlc.ConfigDict:
  """The locked config of the run in `workdir`, its tuples restored.

  Raises:
    UserError: there is no run, or it is not of the stage asked for.
  """
  path = os.path.join(workdir, "config.json")
  try:
    with open(path) as file:
      tree = json.load(file)
  except FileNotFoundError as error:
    message = f"--workdir={workdir} holds no run: there is no config.json"
    raise UserError(message) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  if stage and tree.get("stage") != stage:
    raise UserError(
      f"{workdir} holds a run of stage={tree.get('stage')}; this needs one of"
      f" stage={stage}"
    )
  return mlc.ConfigDict(_tuples(tree)).lock()


def _tuples(tree):
  if isinstance(tree, dict):
    return {key: _tuples(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return tuple(_tuples(value) for value in tree)
  return tree


def check_workdir(workdir, config, *, same, moves=(), free=(), why=""):
  """Makes the run's folder, or checks that the run in it is this one.

  Nothing is saved: a start that is refused later leaves a run as it was, and
  an empty folder free. `save_config` comes when nothing can refuse any more.

  Args:
    workdir: folder of the run.
    config: of this start.
    same: dotted keys or sections that make the run what it is. They may not
      change when a run resumes; all the others may.
    moves: keys of `same` that name places: another one may be named, not one
      instead of none. That the same lies there is for the job to check.
    free: keys or sections inside `same` that may change all the same.
    why: they may not, where that is not plain.
  """
  files.make_folder(workdir, "workdir")
  if os.path.exists(os.path.join(workdir, "config.json")):
    old = flatten(load_config(workdir).to_dict())
    new = flatten(_tuples(files.plain(config.to_dict())))
    inside, outside = (
      tuple(f"{key}." for key in keys) for keys in (same, free)
    )
    differing = [
      f"{key} is {old.get(key, 'absent')!r} there and "
      f"{new.get(key, 'absent')!r} here"
      for key in sorted(old | new)
      if f"{key}.".startswith(inside)
      and not f"{key}.".startswith(outside)
      and old.get(key) != new.get(key)
      and not (key in moves and old.get(key) and new.get(key))
    ]
    if differing:
      more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
      more += f": {why}" if why else ""
      raise UserError(
        f"--workdir={workdir} holds another run: "
        f"{', '.join(differing[:3])}{more}; choose another --workdir"
      )
