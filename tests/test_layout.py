"""The map of the house: imports flow one way.

    files (typing, job, ...)  <-  libraries  <-  jobs

Read from the source alone, so a room need not be importable to be judged.
"""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "goku_jax"
LIBRARIES = {"models", "flow", "data", "parallel"}
JOBS = {"curate", "prepare", "convert", "train", "bench", "plan"}
JOBS |= {"sample", "eval", "ablations"}
# Between jobs: samples and evaluators run inside training, an evaluator
# samples, a run is restored in one way, and bench and plan measure what the
# others do.
JOB_MAY_USE = {
  "convert": {"sample"},
  "prepare": {"sample"},
  "train": {"sample", "eval"},
  "eval": {"sample"},
  "bench": JOBS,
  "plan": JOBS,
  "ablations": JOBS,
}
MESH_AXES = {"replica", "fsdp", "sequence", "tensor"}

SOURCES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
FILES = {path.stem for path in PACKAGE.glob("*.py")}


def room_of(path):
  """The room of a source; None for the files beside the rooms."""
  parts = path.relative_to(PACKAGE).parts
  return parts[0] if len(parts) > 1 else None


def imports(path):
  """Dotted names that a source imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        package = path.relative_to(ROOT).parts[: -node.level]
        base = ".".join((*package, base)).rstrip(".")
      yield from (f"{base}.{alias.name}" for alias in node.names)


def top_names(path):
  """What a source uses directly under `goku_jax`: rooms and files."""
  names = (name.split(".") for name in imports(path))
  return {name[1] for name in names if name[0] == "goku_jax" and name[1:]}


def by_path(paths):
  """One case for each path, named by it."""
  ids = [str(path.relative_to(ROOT)) for path in paths]
  return pytest.mark.parametrize("path", paths, ids=ids)


def may_use(room):
  if room is None:
    return FILES
  if room in LIBRARIES:
    return {room, "typing"}
  return {room} | LIBRARIES | FILES | JOB_MAY_USE.get(room, set())


def imports_any(path, *packages):
  """Whether a source imports one of the dotted packages, or from inside it."""
  return any(
    f"{name}.".startswith(f"{package}.")
    for name in imports(path)
    for package in packages
  )


def test_every_folder_is_a_room_of_the_map():
  rooms = {room_of(path) for path in SOURCES} - {None}
  assert rooms <= LIBRARIES | JOBS


@by_path(SOURCES)
def test_source_imports_only_what_its_room_may(path):
  room = room_of(path)
  # `from goku_jax import __version__` names neither a room nor a file.
  assert top_names(path) - {"__version__"} <= may_use(room)


@by_path(CONFIGS)
def test_config_imports_ml_collections_and_configs_alone(path):
  allowed = {"ml_collections", "configs"} | set(sys.stdlib_module_names)
  assert {name.split(".")[0] for name in imports(path)} <= allowed


def test_linen_stays_in_models_and_one_file_of_parallel():
  users = [
    path
    for path in SOURCES
    if imports_any(path, "flax.linen") and room_of(path) != "models"
  ]
  assert {room_of(path) for path in users} <= {"parallel"}
  assert len(users) <= 1


def test_no_source_imports_nnx_or_flax_training():
  banned = ("flax.nnx", "flax.training")
  assert [p for p in SOURCES if imports_any(p, *banned)] == []


def test_data_never_imports_jax():
  sources = [path for path in SOURCES if room_of(path) == "data"]
  banned = ("jax", "flax", "optax", "chex", "orbax")
  assert [path for path in sources if imports_any(path, *banned)] == []


def test_only_parallel_names_mesh_axes():
  for path in SOURCES:
    if room_of(path) != "parallel":
      nodes = ast.walk(ast.parse(path.read_text()))
      literals = {n.value for n in nodes if isinstance(n, ast.Constant)}
      assert not literals & MESH_AXES, path
