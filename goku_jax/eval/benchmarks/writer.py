"""Samples into the layout of their benchmark, each whole or not at all.

Nothing but what the tool reads is ever in the folder. Beside it, FOLDER.made
holds

  run.json         what drew the samples: no two runs mix in a folder
  samples.jsonl    each sample's prompt, the rewritten prompt, path, and index,
                   which gives its noise together with the seed
  parts/           samples whose grid is not whole yet
  partial/         files that are being written
"""

import json
import pathlib
import shutil
import uuid

import numpy as np
from PIL import Image

from goku_jax import files, lines
from goku_jax.data import video_io
from goku_jax.eval.benchmarks.layout import GRID, Benchmark, Sample, exists
from goku_jax.typing import UserError


class Writer:
  """Writes the samples of one benchmark, in one process.

  Args:
    folder: what the tool is given; made, as are those above it.
    benchmark: whose samples are written.
    run: whatever says how they are drawn (checkpoint, weights, solver, seed,
      rewriter), as JSON has it.

  Raises:
    UserError: the folder holds samples of another run, or cannot be written.
  """

  def __init__(self, folder, benchmark: Benchmark, run: dict):
    self.folder = pathlib.Path(folder).resolve()
    self.beside = beside_of(self.folder)
    self._benchmark = benchmark
    self._parts, self._partial = self.beside / "parts", self.beside / "partial"
    for path in (self.folder, self._parts, self._partial):
      files.make_folder(str(path), "out")
    self._keep_run(run)
    self._lines = lines.Log(self.beside / "samples.jsonl")

  def _keep_run(self, run):
    path = self.beside / "run.json"
    if not path.exists():
      if any(self.folder.iterdir()):
        raise UserError(
          f"{self.folder} holds files already, and no {path.name} says of"
          " which run: choose another --out"
        )
      files.write_json(path, run)
    kept, run = json.loads(path.read_bytes()), json.loads(files.to_json(run))
    if kept != run:
      other = sorted(k for k in kept | run if kept.get(k) != run.get(k))
      raise UserError(
        f"{self.folder} holds samples of another run ({', '.join(other)}):"
        " choose another --out, or remove it and what is beside it"
      )

  def missing(self) -> list[Sample]:
    """The samples that are still to be drawn."""
    return [s for s in self._benchmark.samples if not self._has(s)]

  def _has(self, sample) -> bool:
    if exists(self.folder, sample.path):
      return not sample.beside or exists(self.folder, sample.beside.path)
    return sample.part is not None and exists(self._parts, _part_of(sample))

  def write(self, sample: Sample, pixels: np.ndarray, rewritten=None):
    """Writes a sample, unless it is there.

    Args:
      sample: of the benchmark.
      pixels: uint8 RGB, [T, H, W, 3] of a video, [H, W, 3] of an image or
        [1, H, W, 3] of one.
      rewritten: the prompt that the model was given, where it was another.
    """
    if not self._has(sample):
      # First, so that no file is without its line.
      self._lines.append(
        dict(
          prompt=sample.prompt,
          rewritten=rewritten,
          index=sample.seed_index,
          path=sample.path,
          part=sample.part,
        )
      )
      self._write(sample, pixels)
    if sample.part is not None:
      self._join(sample)

  def finish(self) -> None:
    """Joins parts that are left and removes what is not kept."""
    for sample in self._benchmark.samples:
      if sample.part is not None:
        self._join(sample)
    for path in (self._parts, self._partial):
      shutil.rmtree(path, ignore_errors=True)

  def _write(self, sample, pixels):
    if self._benchmark.fps:
      fps = self._benchmark.fps
      write = lambda path: video_io.write_video(path, pixels, fps=fps)
      self._place(self.folder / sample.path, write)
      return
    image = Image.fromarray(_image(pixels))
    if sample.beside:
      write = lambda path: path.write_text(sample.beside.text)
      self._place(self.folder / sample.beside.path, write)
    if sample.part is None:
      self._place(self.folder / sample.path, image.save)
      return
    if image.width != image.height:
      raise UserError(
        f"{self._benchmark.name} needs square images, not {image.height} x"
        f" {image.width}"
      )
    self._place(self._parts / _part_of(sample), image.save)

  def _join(self, sample):
    """Makes the grid of a sample once its parts are there."""
    names = [
      self._parts / _part_of(sample._replace(part=i)) for i in range(GRID**2)
    ]
    path = self.folder / sample.path
    if not exists(self.folder, sample.path):
      if not all(name.exists() for name in names):
        return
      parts = [Image.open(name, formats=("PNG",)) for name in names]
      grid = _grid([np.asarray(part) for part in parts], path)
      self._place(path, Image.fromarray(grid).save)
    for name in names:
      name.unlink(missing_ok=True)

  def _place(self, path, write):
    """Makes a file elsewhere, then gives it its name."""
    partial = self._partial / f"{uuid.uuid4().hex}{path.suffix}"
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      write(partial)
      files.sync(partial)
      partial.replace(path)
    except OSError as error:
      raise UserError(
        f"{path}: cannot write there ({error.strerror}); choose another place"
      ) from error
    finally:
      partial.unlink(missing_ok=True)


def beside_of(folder) -> pathlib.Path:
  """The folder of what the tool must not see."""
  folder = pathlib.Path(folder).resolve()
  return folder.with_name(f"{folder.name}.made")


def _part_of(sample: Sample) -> str:
  name = pathlib.PurePosixPath(sample.path)
  return f"{name.stem}.{sample.part}{name.suffix}"


def _image(pixels) -> np.ndarray:
  pixels = np.asarray(pixels)
  if pixels.ndim == 4 and len(pixels) == 1:
    pixels = pixels[0]
  if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
    raise ValueError(f"expected an image [H, W, 3], got {pixels.shape}")
  if pixels.dtype != np.uint8:
    raise ValueError(f"expected uint8, got {pixels.dtype}")
  return pixels


def _grid(parts, path) -> np.ndarray:
  if len({part.shape for part in parts}) > 1:
    sizes = ", ".join(f"{p.shape[0]} x {p.shape[1]}" for p in parts)
    raise UserError(f"{path}: its four samples differ in size: {sizes}")
  rows = [np.concatenate(parts[i : i + GRID], 1) for i in (0, GRID)]
  return np.concatenate(rows)
