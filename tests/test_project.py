"""The project's own files: bounds, declared imports, no machine in the text."""

import importlib.metadata
import pathlib
import re
import runpy
import subprocess
import sys
import types

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import test_layout

ROOT = pathlib.Path(__file__).parents[1]


def read_setup():
  """The keywords that setup.py gives to setuptools, which is not needed."""
  seen = {}
  stub = types.ModuleType("setuptools")
  stub.setup = seen.update
  stub.find_packages = lambda **_: []
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "setuptools", stub)
    runpy.run_path(str(ROOT / "setup.py"))
  return seen


def requirements():
  setup = read_setup()
  lines = set(setup["install_requires"])
  return sorted(lines.union(*setup["extras_require"].values()))


@pytest.mark.parametrize("line", requirements())
def test_requirement_has_both_bounds_and_admits_what_is_installed(line):
  requirement = Requirement(line)
  operators = {spec.operator for spec in requirement.specifier}
  assert operators in ({">=", "<"}, {"=="})
  try:
    installed = importlib.metadata.version(requirement.name)
  except importlib.metadata.PackageNotFoundError:
    return  # of an extra that this environment does without
  assert requirement.specifier.contains(installed)


def test_every_import_is_declared():
  """Nothing works by the luck of another package's dependency."""
  declared = {canonicalize_name(Requirement(r).name) for r in requirements()}
  declared |= {"jaxlib", "goku-jax"}
  sources = test_layout.SOURCES + test_layout.CONFIGS
  used = {
    n.split(".")[0] for path in sources for n in test_layout.imports(path)
  }
  used -= set(sys.stdlib_module_names) | {"goku_jax", "configs"}
  homes = importlib.metadata.packages_distributions()
  for module in used & set(homes):
    providers = {canonicalize_name(name) for name in homes[module]}
    assert providers & declared, f"{module}: add {providers} to setup.py"


def test_no_file_names_a_path_of_a_machine():
  command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  names = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.splitlines()
  pattern = re.compile(r"(?<![\w./])/(home|root|Users|work|opt)/\w")
  for name in names:
    path = ROOT / name
    text = path.read_text(errors="ignore") if path.is_file() else ""
    found = pattern.search(text)
    assert found is None, f"{name}: {found[0]}"
    assert str(ROOT) not in text, name
