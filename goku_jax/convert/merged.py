"""The weights of a run with adapters as those of a run without.

What comes out is a workdir with one checkpoint, which sample, eval and
init_from take as they do any run's.
"""

import pathlib
import shutil

import jax
import ml_collections as mlc

from goku_jax import checkpoint, job
from goku_jax.sample import codec as codecs
from goku_jax.sample.restore import LATENTS, WEIGHTS, restore_params
from goku_jax.typing import UserError


def read(source, step: int | None = None) -> tuple[dict, dict]:
  """Raw and averaged parameters of a run, merged, and what it is.

  Args:
    source: workdir of a run with `model.lora`.
    step: of its checkpoint; the newest whole one if not given.

  Raises:
    UserError: no such run, or one without adapters.
  """
  config = job.load_config(source, "flow")
  if not config.model.get("lora"):
    raise UserError(f"{source} has no adapters, so there is nothing to merge")
  codec, trees = codecs.load_codec(source), {}
  for kind in reversed(WEIGHTS):
    found = restore_params(source, config, codec, step=step, weights=kind)
    step, trees[kind] = found.step, jax.device_get(found.params)
  config = found.config.to_dict()
  return trees, {"source": str(source), "step": step, "config": config}


def write(out, trees: dict, about: dict):
  """Writes what `read` found as a workdir.

  Raises:
    UserError: there is something already.
  """
  source, folder = (pathlib.Path(path) for path in (about["source"], out))
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"--out={out} is not empty: choose another folder")
  folder.mkdir(exist_ok=True)
  if (source / LATENTS).exists():  # else it was trained on pixels
    shutil.copyfile(source / LATENTS, folder / LATENTS)
    shutil.copytree(source / codecs.FOLDER, folder / codecs.FOLDER)
  config = mlc.ConfigDict(about["config"])
  config.init_from, config.more_ema = None, ()
  config.total_steps = about["step"]
  config.checkpoint.folder = None
  job.save_config(folder, config)
  with checkpoint.Checkpointer(
    checkpoint.folder_of(folder, config), config=config.to_dict()
  ) as saver:
    saver.save(about["step"], trees, {"step": about["step"], "batch": 0})
