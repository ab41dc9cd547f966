"""What `convert` reads and writes: one row a format."""

import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import jax

from goku_jax import job, weights
from goku_jax.convert import (
  c3d,
  clip,
  cogvideox_vae,
  i3d,
  inception,
  lpips,
  merged,
  run,
  tensors,
  wan_vae,
)
from goku_jax.sample import codec
from goku_jax.typing import UserError


class Format(NamedTuple):
  """How weights of others become a weights folder, and one becomes theirs."""

  read: Callable  # (source, **options) -> tree, config of a weights folder
  options: tuple[str, ...]  # that `read` takes
  write: Callable | None = None  # (tree, config) -> tensors, their config
  beside: tuple[str, ...] = ()  # files of the source that go along
  save: Callable = weights.save  # (out, tree, config) -> None


FORMATS = {
  "cogvideox_vae": Format(cogvideox_vae.read, ("sha256",), cogvideox_vae.write),
  "wan_vae": Format(wan_vae.read, ("sha256",), wan_vae.write),
  "clip": Format(clip.read, ("sha256",), beside=(clip.TOKENIZER,)),
  "lpips": Format(lpips.read, ("sha256",)),
  "inception_fid": Format(inception.read, ("sha256",)),
  "i3d": Format(i3d.read, ("sha256",)),
  "c3d": Format(c3d.read, ("sha256",)),
  "run": Format(run.read, ("data", "num_samples", "step")),
  "lora": Format(merged.read, ("step",), save=merged.write),
}


def convert(source, format: str, out, *, reverse: bool, **options) -> dict:
  """Writes the folder `out`; returns what is in it.

  Args:
    source: what the format reads; with `reverse`, a folder of our weights.
    format: a key of FORMATS.
    out: a folder, made if missing.
    reverse: from ours to theirs.
    options: of the format; None where not given.

  Raises:
    UserError: the source does not fit the format, or an option its format.
  """
  if format not in FORMATS:
    raise UserError(f"--format={format} is not one of {', '.join(FORMATS)}")
  row = FORMATS[format]
  given = {k: v for k, v in options.items() if v is not None}
  takes = () if reverse else row.options
  for name in given.keys() - set(takes):
    how = " --reverse" if reverse else ""
    raise UserError(f"--{name} does not go with --format={format}{how}")
  if pathlib.Path(out).resolve() == pathlib.Path(source).resolve():
    raise UserError(f"--out={out} is the source: choose another folder")
  # Before long work, and without leaving a folder where that fails.
  place = pathlib.Path(out)
  job.make_folder(str(place if place.exists() else place.parent), "out")
  if reverse:
    if row.write is None:
      raise UserError(f"--format={format} has no --reverse")
    _, config, tree = codec.load_vae(source)
    found, theirs = row.write(tree, config)
    tensors.write(out, found, theirs)
    return {"tensors": len(found), **_size(found)}
  tree, config = row.read(source, **given)
  folder = pathlib.Path(source)
  folder = folder if folder.is_dir() else folder.parent
  for name in row.beside:
    place.mkdir(exist_ok=True)
    shutil.copyfile(folder / name, place / name)
  row.save(out, tree, config)
  config = {k: v for k, v in config.items() if k not in ("diffusers", "config")}
  return {**config, **_size(tree.get("params", tree))}  # of a run, its own


def _size(tree):
  return {"parameters": sum(x.size for x in jax.tree.leaves(tree))}
