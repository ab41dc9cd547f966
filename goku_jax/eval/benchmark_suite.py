"""Samples of the paper's benchmarks, in the layouts that their tools read.

The tools themselves need other machines and weights: here every prompt is drawn
as often as they count, and the folder is proved to be complete. Started again,
it goes on where it stopped.
"""

import hashlib
import json
import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from goku_jax import config, job
from goku_jax.eval import rewrite
from goku_jax.eval.benchmarks import READERS, layout, vbench, writer
from goku_jax.eval.samples import SAMPLING
from goku_jax.sample import draw
from goku_jax.sample.restore import Restored
from goku_jax.typing import UserError

AT_ONCE = 32  # samples that are drawn together
SETTINGS = ("prompts", "fps", "size", "rewrite", *SAMPLING)
REWRITE = ("file", "endpoint", "model", "instruction", "key_variable")


def run(name: str, run: Restored, out, settings: dict) -> dict:
  """Writes the samples of a benchmark to `out/NAME`; counts them.

  All processes draw together, each its share on its devices; the first writes.

  Args:
    name: a key of READERS.
    run: the model.
    out: folder above the benchmark's own.
    settings: of configs/benchmarks.py.

  Raises:
    UserError: prompts that are not there, prompts or settings that the model
      does not take, or a folder with samples of another run.
  """
  _check_settings(name, run, settings)
  settings = settings | {
    "size": tuple(settings["size"] or run.config.sample.size)
  }
  benchmark = _read(name, settings)
  folder = pathlib.Path(out) / name
  texts, by = _rewrite(name, benchmark, folder, settings["rewrite"])
  draw.check(run, list(texts.values()), labels=None, **_sampling(settings))
  file = None
  if jax.process_index() == 0:
    about = _describe(run, settings, benchmark, texts, by)
    file = writer.Writer(folder, benchmark, about)
  missing = _missing(benchmark, file)
  with job.Progress(len(missing), 0, name) as progress:
    for start in range(0, len(missing), AT_ONCE):
      here = missing[start : start + AT_ONCE]
      videos = _draw(run, here, texts, settings)
      for sample, pixels in zip(here, videos, strict=True) if file else ():
        file.write(sample, pixels, texts[sample.prompt] if by else None)
      progress.update(start + len(here))
  problems = []
  if file:
    file.finish()
    problems = layout.check(folder, benchmark)
    for line in problems[:10]:
      print(f"{name}: {line}", flush=True)
  count, total = len(benchmark.samples), benchmark.protocol
  return {
    "folder": str(folder),
    "num_samples": count if count >= total else f"{count} of {total}",
    "problems": len(problems),
    "rewriter": by or "none",
  }


def _check_settings(name, run, settings):
  """Refuses other keys than configs/benchmarks.py has, and other models."""
  where = f"evals.{name}"
  _check_keys(where, settings, SETTINGS)
  _check_keys(f"{where}.rewrite", settings["rewrite"] or {}, REWRITE)
  if run.model.config.num_classes:
    raise UserError(
      f"{name} is for models of text alone: this one has classes too, of which"
      " its prompts say nothing"
    )
  if settings["size"] and len(settings["size"]) != 2:
    raise UserError(f"{where}.size={settings['size']}: give height and width")
  if settings["fps"] is not None and settings["fps"] < 1:
    raise UserError(f"{where}.fps={settings['fps']}: set 1 or more")
  if settings["prompts"] is None and name != "vbench":
    raise UserError(
      f"set {where}.prompts to a copy of the benchmark's own prompts:"
      " configs/benchmarks.py says which file or folder"
    )


def _check_keys(where, given, known):
  if missing := sorted(set(known) - set(given)):
    raise UserError(
      f"{where} lacks {', '.join(missing)}: configs/benchmarks.py has all"
    )
  for key in sorted(set(given) - set(known)):
    near = config.near(key, known)
    raise UserError(f"{where} has an unknown key {key!r}{near}")


def _read(name, settings) -> layout.Benchmark:
  benchmark = READERS[name](settings["prompts"])
  where, fps, size = f"evals.{name}", settings["fps"], settings["size"]
  if benchmark.fps:
    if settings["num_frames"] == 1:
      raise UserError(f"{where}.num_frames=1: {name} is of videos, set more")
    return benchmark._replace(fps=fps or benchmark.fps)
  if settings["num_frames"] != 1:
    raise UserError(f"{where}.num_frames: {name} is of images, set 1")
  if fps:
    raise UserError(f"{where}.fps: {name} is of images, leave it out")
  if benchmark.samples[0].part is not None and size[0] != size[1]:
    raise UserError(
      f"{where}.size: {name} needs square images, not {size[0]} x {size[1]}"
    )
  return benchmark


def _describe(run, settings, benchmark, texts, by) -> dict:
  """What tells the samples of one run from those of all others."""
  prompts = json.dumps([benchmark.samples, texts]).encode()
  return settings | {
    "step": run.step,
    "weights": run.weights,
    "checkpoint": run.digest,
    "prompts": hashlib.sha256(prompts).hexdigest(),
    "rewrite": by,
  }


def _sampling(settings):
  return {k: settings[k] for k in (*SAMPLING, "size")}


def _draw(run, samples, texts, settings):
  videos = draw.draw(
    run,
    [texts[sample.prompt] for sample in samples],
    indices=[sample.seed_index for sample in samples],
    **_sampling(settings),
  )
  return videos if settings["num_frames"] > 1 else [v[0] for v in videos]


def _missing(benchmark, file) -> list:
  """Samples that are still to be drawn, the same on all processes."""
  open_ = np.zeros(len(benchmark.samples), bool)
  if file:
    left = set(file.missing())
    open_[:] = [sample in left for sample in benchmark.samples]
  if jax.process_count() > 1:
    open_ = multihost_utils.broadcast_one_to_all(open_)
  return [benchmark.samples[i] for i in np.flatnonzero(open_)]


def _rewrite(name, benchmark, folder, settings):
  """What the model reads, by prompt, and what rewrote it, if anything did."""
  prompts = list(dict.fromkeys(sample.prompt for sample in benchmark.samples))
  path, base = settings["file"], settings["endpoint"]
  if path and base:
    raise UserError(
      f"evals.{name}.rewrite has a file and an endpoint: leave one out"
    )
  if path:
    return rewrite.from_file(prompts, path), rewrite.describe_file(path)
  if not base:
    return dict(zip(prompts, prompts, strict=True)), None
  if not settings["model"]:
    raise UserError(f"set evals.{name}.rewrite.model to what is asked")
  if jax.process_count() > 1:
    raise UserError(
      f"evals.{name}.rewrite.endpoint is asked by one process alone: run the"
      " suite on one first, and give its file here"
    )
  endpoint = rewrite.Endpoint(
    base,
    settings["model"],
    rewrite.read_instruction(settings["instruction"]),
    os.environ.get(settings["key_variable"]),
  )
  cache = writer.beside_of(folder) / "rewritten.jsonl"
  cache.parent.mkdir(parents=True, exist_ok=True)
  found = rewrite.from_endpoint(prompts, endpoint, cache)
  return found, endpoint.describe()


def fold(path) -> dict:
  """VBench's totals out of the results that its tool wrote."""
  return vbench.fold(vbench.read_results(path))
