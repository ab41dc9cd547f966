"""VBench: 16 judgements of videos (Huang et al. 2024), and their totals.

The tool looks for `{prompt}-{i}.mp4` in one flat folder, by the ending of
whichever file it meets there first. Every prompt has 5 videos, but 25 where
flicker is judged, of which the tool's filter keeps 5 that stand still.

With the score s of a dimension, its bounds and its weight w,

  quality   sum w (s - min) / (max - min) / sum w, of 7 dimensions
  semantic  the same of the other 9
  total     (4 quality + semantic) / 5
"""

import importlib.metadata
import json
import math
import pathlib
import zipfile
from typing import NamedTuple

from goku_jax.eval.benchmarks.layout import Benchmark, Sample, check_names
from goku_jax.typing import UserError

NAME = "VBench_full_info.json"
VIDEOS = 5
FLICKER, FLICKER_VIDEOS = "temporal_flickering", 25
TOTAL = 6220  # videos: 869 prompts of 5 and 75 of 25
FPS = 8


class Dimension(NamedTuple):
  """Bounds of a score, from the tool's scripts/constant.py, and its weight."""

  low: float = 0.0
  high: float = 1.0
  weight: float = 1.0


QUALITY = {
  "subject_consistency": Dimension(0.1462),
  "background_consistency": Dimension(0.2615),
  FLICKER: Dimension(0.6293),
  "motion_smoothness": Dimension(0.706, 0.9975),
  "dynamic_degree": Dimension(weight=0.5),
  "aesthetic_quality": Dimension(),
  "imaging_quality": Dimension(),
}
SEMANTIC = {
  "object_class": Dimension(),
  "multiple_objects": Dimension(),
  "human_action": Dimension(),
  "color": Dimension(),
  "spatial_relationship": Dimension(),
  "scene": Dimension(high=0.8222),
  "appearance_style": Dimension(0.0009, 0.2855),
  "temporal_style": Dimension(high=0.364),
  "overall_consistency": Dimension(high=0.364),
}
DIMENSIONS = QUALITY | SEMANTIC


def read(source=None) -> Benchmark:
  """The videos of all prompts.

  Args:
    source: VBench_full_info.json, or the wheel of `vbench` with it inside; the
      installed package by default, which is not imported.

  Raises:
    UserError: it is missing, or not such a file.
  """
  counts = {}
  for entry in _entries(source):
    prompt, videos = entry
    counts[prompt] = max(videos, counts.get(prompt, 0))  # two stand there twice
  names = ((p, f"{p}-{i}.mp4") for p in counts for i in range(counts[p]))
  samples = (Sample(*name, n) for n, name in enumerate(names))
  return check_names(Benchmark("vbench", tuple(samples), TOTAL, ("*",), FPS))


def _entries(source):
  """Pairs of a prompt and its number of videos, as the file lists them."""
  where = source or f"{NAME} of the package vbench"
  try:
    listed = json.loads(_read(source))
    for entry in listed:
      prompt, dimensions = entry["prompt_en"], set(entry["dimension"])
      if not isinstance(prompt, str) or not dimensions <= set(DIMENSIONS):
        raise ValueError(f"not VBench's dimensions: {sorted(dimensions)}")
      yield prompt, FLICKER_VIDEOS if FLICKER in dimensions else VIDEOS
  except (OSError, zipfile.BadZipFile) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{where}: cannot read it ({reason})") from error
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{where}: not VBench's prompts ({error})") from error


def _read(source) -> bytes:
  if source is None:
    try:
      package = importlib.metadata.distribution("vbench")
    except importlib.metadata.PackageNotFoundError:
      raise UserError(
        "VBench's prompts are missing: pip install --no-deps vbench, or name"
        f" {NAME} or the wheel that holds it"
      ) from None
    source = package.locate_file(f"vbench/{NAME}")
  path = pathlib.Path(source)
  if path.suffix not in (".whl", ".zip"):
    return path.read_bytes()
  with zipfile.ZipFile(path) as archive:
    members = [m for m in archive.namelist() if m.split("/")[-1] == NAME]
    if len(members) != 1:
      raise ValueError(f"it holds {NAME} {len(members)} times")
    return archive.read(members[0])


def read_results(source) -> dict:
  """What the tool found: its JSON, or a folder of those of single dimensions.

  Raises:
    UserError: there is none, or two tell other scores of a dimension.
  """
  path = pathlib.Path(source)
  paths = sorted(path.rglob("*_eval_results.json")) if path.is_dir() else [path]
  if not paths:
    raise UserError(f"{path} holds no *_eval_results.json of VBench")
  found = {}
  for path in paths:
    try:
      results = json.loads(path.read_bytes())
    except OSError as error:
      raise UserError(f"{path}: cannot read it ({error.strerror})") from error
    except ValueError as error:
      raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(results, dict):
      raise UserError(f"{path}: not results of VBench, by dimension")
    for name, value in results.items():
      if name in found and _score(name, found[name]) != _score(name, value):
        raise UserError(f"{path}: another score of {name} than a file before")
      found[name] = value
  return found


def fold(results: dict) -> dict[str, float]:
  """Totals in percent, `total`, `quality`, `semantic`, and each dimension.

  Args:
    results: of all 16 dimensions, each a score from 0 to 1 or a list that
      opens with it, as in the tool's JSON.

  Raises:
    UserError: a dimension is missing, or its score is no share.
  """
  missing = [name for name in DIMENSIONS if name not in results]
  if missing:
    raise UserError(
      f"VBench's totals need all {len(DIMENSIONS)} dimensions; evaluate"
      f" {', '.join(missing)} too"
    )
  scores = {name: _score(name, results[name]) for name in DIMENSIONS}
  quality, semantic = _mean(scores, QUALITY), _mean(scores, SEMANTIC)
  totals = {
    "total": (4 * quality + semantic) / 5,
    "quality": quality,
    "semantic": semantic,
  }
  return {name: 100 * value for name, value in (totals | scores).items()}


def _mean(scores, dimensions) -> float:
  parts = (
    d.weight * (scores[name] - d.low) / (d.high - d.low)
    for name, d in dimensions.items()
  )
  return sum(parts) / sum(d.weight for d in dimensions.values())


def _score(name, value) -> float:
  if isinstance(value, list | tuple):
    value = value[0] if value else None
  number = isinstance(value, int | float) and math.isfinite(value)
  if not number or not 0 <= value <= 1:
    raise UserError(
      f"VBench's {name} is {value!r}: give the tool's own score, from 0 to 1"
    )
  return float(value)
