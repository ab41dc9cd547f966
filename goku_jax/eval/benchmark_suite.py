"""Samples of the paper's benchmarks, in the layouts that their tools read.

The tools themselves need other machines and weights: here every prompt is drawn
as often as they count, and the folder is proved to be complete. Started again,
it goes on where it stopped.
"""

import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from goku_jax import job
from goku_jax.eval import rewrite
from goku_jax.eval.benchmarks import READERS, layout, vbench, writer
from goku_jax.sample import draw
from goku_jax.sample.restore import Restored
from goku_jax.typing import UserError

AT_ONCE = 32  # samples that are drawn together
SAMPLING = ("num_frames", "num_steps", "guidance_scale", "shift", "seed")


def run(name: str, run: Restored, out, settings: dict) -> dict:
  """Writes the samples of a benchmark to `out/NAME`; counts them.

  All processes draw together, each its share on its devices; the first writes.

  Args:
    name: a key of READERS.
    run: the model.
    out: folder above the benchmark's own.
    settings: of configs/benchmarks.py.

  Raises:
    UserError: prompts that are not there, settings that the model does not
      take, or a folder with samples of another run.
  """
  benchmark = READERS[name](settings["prompts"])
  if benchmark.fps and settings["fps"]:
    benchmark = benchmark._replace(fps=settings["fps"])
  elif settings["num_frames"] != 1 and not benchmark.fps:
    raise UserError(f"evals.{name}.num_frames: {name} is of images, set 1")
  folder = pathlib.Path(out) / name
  rewritten, by = _rewrite(name, benchmark, folder, settings["rewrite"])
  is_first = jax.process_index() == 0
  about = {"step": run.step, **settings, "rewrite": by}
  file = writer.Writer(folder, benchmark, about) if is_first else None
  missing = _missing(benchmark, file)
  with job.Progress(len(missing), 0, name) as progress:
    for start in range(0, len(missing), AT_ONCE):
      here = missing[start : start + AT_ONCE]
      videos = _draw(run, here, rewritten, settings)
      if file:
        seeds = [sample.seed_index for sample in here]
        file.write_all(zip(here, videos, seeds, strict=True), rewritten)
      progress.update(start + len(here))
  problems = []
  if file:
    file.finish()
    problems = layout.check(folder, benchmark)
    for line in problems[:10]:
      print(f"{name}: {line}", flush=True)
  count = len(benchmark.samples)
  whole = (
    count
    if count >= benchmark.protocol
    else f"{count} of" + (f" {benchmark.protocol}")
  )
  return {
    "folder": str(folder),
    "num_samples": whole,
    "problems": len(problems),
    "rewriter": by or "none",
  }


def _draw(run, samples, rewritten, settings):
  videos = draw.draw(
    run,
    [rewritten.get(sample.prompt, sample.prompt) for sample in samples],
    indices=[sample.seed_index for sample in samples],
    size=tuple(settings["size"] or (None, None)),
    **{k: settings[k] for k in SAMPLING},
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
  """Rewritten prompts by prompt, and what rewrote them; nothing by default."""
  prompts = list(dict.fromkeys(sample.prompt for sample in benchmark.samples))
  path, base = settings["file"], settings["endpoint"]
  if path and base:
    raise UserError(
      f"evals.{name}.rewrite has a file and an endpoint: leave one out"
    )
  if path:
    return rewrite.from_file(prompts, path), rewrite.describe_file(path)
  if not base:
    return {}, None
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
