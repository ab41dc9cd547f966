"""Importing the house stays light: no second framework comes in with it."""

import json
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "goku_jax"
LIBRARIES = ("models", "flow", "data", "parallel")
HEAVY = ("torch", "tensorflow", "apache_beam")

# Imports each module given and prints which heavy packages came with it.
PROGRAM = """
import importlib, json, sys
heavy = set(sys.argv[1].split(","))
found = {}
for name in sys.argv[2:]:
  importlib.import_module(name)
  found[name] = sorted(heavy & set(sys.modules))
print(json.dumps(found))
"""


def modules():
  """The package, its files, all of each library room, and each job package."""
  names = ["goku_jax"]
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    is_file = len(parts) == 2
    if is_package or is_file or parts[1] in LIBRARIES:
      names.append(".".join(parts[:-1] if is_package else parts))
  return sorted(set(names))


@pytest.fixture(scope="module")
def heavy_imports():
  """For each module, the heavy packages loaded once it is imported."""
  command = [sys.executable, "-c", PROGRAM, ",".join(HEAVY), *modules()]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", modules())
def test_import_brings_no_second_framework(name, heavy_imports):
  assert heavy_imports[name] == []


def test_the_check_sees_a_heavy_import():
  program = PROGRAM.replace("importlib.import_module(name)", "import decimal")
  command = [sys.executable, "-c", program, "decimal", "goku_jax"]
  output = subprocess.run(command, capture_output=True, text=True, check=True)
  assert json.loads(output.stdout) == {"goku_jax": ["decimal"]}
