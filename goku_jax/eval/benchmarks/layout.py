"""What a benchmark's tool reads, and whether a folder holds all of it.

A sample is one video or image that a model draws. Its path is the very name
that the tool looks for; the tools tell no error where one is missing, and some
count whatever else lies in the folder.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from goku_jax.typing import UserError

NAME_BYTES = 255  # of a file, on the file systems in use
GRID = 2  # samples a side of a picture that holds several


class Beside(NamedTuple):
  """A text that the tool reads beside a sample."""

  path: str
  text: str


class Sample(NamedTuple):
  """One video or image to draw."""

  prompt: str  # the benchmark's own words
  path: str  # relative to the benchmark's folder, by "/"
  seed_index: int  # in the whole benchmark: fold it into the seed
  part: int | None = None  # place in a grid of GRID x GRID, row by row
  beside: Beside | None = None


class Benchmark(NamedTuple):
  """All samples of a benchmark, in the order of its prompts."""

  name: str
  samples: tuple[Sample, ...]
  protocol: int  # samples that the paper counts; fewer are no such result
  reads: tuple[str, ...]  # globs of all that the tool takes for samples
  fps: int | None = None  # frames per second; None where samples are images


def check_names(benchmark: Benchmark) -> Benchmark:
  """The benchmark, or raises `UserError` where a sample cannot be a file."""
  if not benchmark.samples:
    raise UserError(f"{benchmark.name}: there is no prompt")
  slashes = benchmark.reads[0].count("/")
  seen = set()
  for sample in benchmark.samples:
    path, prompt = sample.path, sample.prompt
    where = f"{benchmark.name}: the prompt {prompt[:40]!r}"
    if not prompt.strip():
      raise UserError(f"{benchmark.name}: the prompt of {path} is empty")
    if "\0" in path or path.count("/") != slashes:
      raise UserError(f"{where} cannot name a file: it holds a '/' or a null")
    if max(len(os.fsencode(x)) for x in path.split("/")) > NAME_BYTES:
      raise UserError(f"{where} is too long to name a file")
    if (path, sample.part) in seen:
      raise UserError(f"{benchmark.name}: {path} is there for two samples")
    seen.add((path, sample.part))
  return benchmark


def exists(folder, path: str) -> bool:
  """Whether a file is there and not empty."""
  try:
    return (pathlib.Path(folder) / path).stat().st_size > 0
  except (FileNotFoundError, NotADirectoryError):
    return False


def check(folder, benchmark: Benchmark) -> list[str]:
  """What keeps the tool from reading just these samples; [] where nothing.

  One line for each path that is missing, empty or superfluous, each text that
  is another, and each grid of another size than the first one.
  """
  folder = pathlib.Path(folder)
  there = {p for pattern in benchmark.reads for p in folder.glob(pattern)}
  # As listed: where case does not count, two prompts may share a file.
  names = {path.relative_to(folder).as_posix() for path in there}
  paths = dict.fromkeys(sample.path for sample in benchmark.samples)
  lines = []
  for path in paths:
    lines += _check_file(folder, path, listed=path in names)
  texts = dict.fromkeys(s.beside for s in benchmark.samples if s.beside)
  for beside in texts:
    found = _check_file(folder, beside.path)
    if not found and (folder / beside.path).read_text() != beside.text:
      found = [f"another text than the prompts': {beside.path}"]
    lines += found
  lines += [f"superfluous: {name}" for name in sorted(names - set(paths))]
  grids = dict.fromkeys(s.path for s in benchmark.samples if s.part is not None)
  return lines + _check_grids(folder, grids)


def _check_file(folder, path, *, listed=True) -> list[str]:
  if not listed or not (folder / path).exists():
    return [f"missing: {path}"]
  if not (folder / path).is_file():
    return [f"not a file: {path}"]
  return [] if exists(folder, path) else [f"empty: {path}"]


def _check_grids(folder, paths: Iterable[str]) -> list[str]:
  """The tool cuts all grids at one place, and tells no other."""
  lines, first = [], None
  for path in paths:
    if not exists(folder, path):
      continue
    try:
      with Image.open(folder / path, formats=("PNG",)) as image:
        size = image.size
    except (OSError, Image.DecompressionBombError):
      lines.append(f"not a picture: {path}")
      continue
    first = first or size
    if size != first or size[0] != size[1] or size[0] % GRID:
      lines.append(
        f"{size[0]} x {size[1]} pixels: {path}, where a square of"
        f" {first[0] // GRID * GRID} was expected"
      )
  return lines
