"""Networks of distances with the weights that `convert` wrote, as functions.

Each takes uint8 pixels of any one size, resizes them by its protocol's rule,
and gives float32 features; with it goes what a result must name.

Letters: N samples, T H W frames, height, width, D numbers in a feature.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from goku_jax import trees, weights
from goku_jax.eval import resize
from goku_jax.models.judges import c3d, clip, i3d, inception, lpips, vgg
from goku_jax.typing import UserError

IMAGES, CLIPS = 32, 4  # at once
NETWORKS = {
  "inception_fid": inception,
  "i3d": i3d,
  "c3d": c3d,
  "lpips": lpips,
  "clip": clip,
}
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Judge(NamedTuple):
  """A network and its weights."""

  read: Callable  # pixels [N, ...] -> features by name, [N, D] each
  about: dict  # network, resize, digest of the weights


def load_inception(folder) -> Judge:
  """pool3, spatial and logits of images, as ADM's evaluator has them.

  Raises:
    UserError: no weights, damaged ones, or those of something else; by `read`:
      pixels of another dtype or shape.
  """
  params, config = _load(folder, "inception_fid")
  network = inception.Inception()

  def apply(params, images):
    images = resize.resize(images, inception.SIDE, "tf1")
    images = (images - 128) / 128
    return network.apply({"params": params}, images)._asdict()

  return _judge(apply, params, config, IMAGES, "tf1")


def load_i3d(folder, rule: str) -> Judge:
  """Logits of clips of 10 frames or more, averaged over time.

  Raises:
    UserError: as `load_inception`.
  """
  params, config = _load(folder, "i3d")
  network = i3d.I3D(bn_eps=config["bn_eps"])

  def apply(params, clips):
    clips = resize.resize(clips, i3d.SIDE, rule)
    return {"logits": network.apply({"params": params}, clips / 127.5 - 1)}

  return _judge(apply, params, config, CLIPS, rule)


def load_c3d(folder) -> Judge:
  """Logits of UCF-101's classes of clips of 16 frames, as TGANv2 has them.

  Raises:
    UserError: as `load_inception`.
  """
  params, config = _load(folder, "c3d")

  def apply(params, clips):
    clips = resize.resize(clips, c3d.SIDE, "corners")
    clips = clips * (128 / 127.5)  # theirs: 128 times pixels in [-1, 1], + 128
    return {"logits": c3d.C3D().apply({"params": params}, clips)}

  return _judge(apply, params, config, CLIPS, "corners")


def load_vgg(folder) -> Judge:
  """VGG16's last features (conv5_3 after its ReLU), averaged over pixels.

  A distance in them is no FID, whose network is another.

  Raises:
    UserError: as `load_inception`.
  """
  params, config = _load(folder, "lpips", "lpips_vgg16")

  def apply(params, images):
    if min(images.shape[1:3]) < lpips.MIN_SIDE:
      raise UserError(f"images have {lpips.MIN_SIDE} pixels a side or more")
    units = (images / np.float32(255) - MEAN) / STD
    features = vgg.VGG16().apply({"params": params["vgg"]}, units)[-1]
    return {"features": features.mean((1, 2))}

  return _judge(apply, params, config, IMAGES, "none")


def together(judges: dict[str, Judge]) -> Judge:
  """Several that read the same pixels; "name.feature" of each."""

  def read(pixels):
    return {
      f"{name}.{feature}": x
      for name, judge in judges.items()
      for feature, x in judge.read(pixels).items()
    }

  return Judge(read, {})


def check_there(folder, format: str):
  """Raises UserError where a folder has no weights, and says where to get."""
  if not folder or not weights.exists(folder):
    raise UserError(
      f"{folder or 'no folder'}: has no weights of {format}. Bring"
      f" {NETWORKS[format].ORIGIN}, by python -m goku_jax.convert"
      f" --format={format} --source=FILE --out=FOLDER, and name"
      " FOLDER in the suite's settings"
    )


def _load(folder, format, network=None):
  check_there(folder, format)
  params, config = weights.load(folder)
  if (found := config.get("network")) != (network or format):
    raise UserError(f"{folder} has the weights of {found}, not of {format}")
  wanted = trees.shapes(NETWORKS[format].abstract_params())
  trees.check_shapes(trees.shapes(params), wanted, f"the weights in {folder}")
  return params, config


def _judge(apply, params, config, rows, rule):
  """Of any number of samples."""
  digest = config.get("source_sha256") or weights.digest(params)
  read_all = in_batches(apply, params, rows)

  def read(pixels):
    if pixels.dtype != np.uint8 or pixels.shape[-1:] != (3,):
      raise UserError(
        f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 of three"
        " colours"
      )
    return read_all(pixels)

  about = {"network": config["network"], "resize": rule, "weights": digest}
  return Judge(read, about)


def in_batches(apply, params, rows: int) -> Callable:
  """`apply` of any number of samples; it compiles once for each size.

  On a CPU every core takes samples of its own, one after the other: cores that
  share a sample wait for each other in every layer. They take several a call,
  in each of which the kernels are laid out anew.

  Args:
    apply: params, samples [N, ...] -> a tree of arrays [N, ...].
    params: of the network.
    rows: samples at once.
  """
  on_cpu = jax.default_backend() == "cpu"
  cores = len(os.sched_getaffinity(0)) if on_cpu else 1
  options = {"xla_cpu_multi_thread_eigen": False} if on_cpu else {}
  params = jax.device_put(params)

  def one_by_one(params, samples):
    found = jax.lax.map(lambda x: apply(params, x[None]), samples)
    return jax.tree.map(lambda x: x[:, 0], found)

  fn = jax.jit(one_by_one if on_cpu else apply, compiler_options=options)

  def read(samples):
    size = min(rows, -(-len(samples) // cores))

    def read_part(start):
      part = samples[start : start + size]
      rest = [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1)
      made = jax.device_get(fn(params, np.pad(part, rest)))
      return jax.tree.map(lambda x: x[: len(part)], made)

    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
      parts = list(pool.map(read_part, range(0, len(samples), size)))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  return read
