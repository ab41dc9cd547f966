"""LPIPS by its published formula in torch, on weights and images of a seed.

    python tests/golden/lpips.py --write

writes lpips.json; it needs the extra `parity`. The package `lpips` cannot be
installed beside this torch without pieces of torchvision; run by hand on the
real weights, it gave the same distances to 3e-8.
"""

import json
import pathlib
import sys

import numpy as np

from goku_jax.data import hashing

PATH = pathlib.Path(__file__).with_suffix(".json")
WIDTHS = (64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3


def _uniform(shape, *words):
  return hashing.uniform(*words, np.arange(np.prod(shape))).reshape(shape)


def params():
  """A tree as the converter's, of a size that keeps features alive."""
  vgg, before, number, heads = {}, 3, 0, {}
  for level, widths in enumerate(WIDTHS):
    for width in widths:
      shape = 3, 3, before, width
      spread = (24 / (9 * before)) ** 0.5  # variance 2 / inputs, as He's
      vgg[f"conv_{number}"] = {
        "kernel": (spread * (_uniform(shape, 0, number) - 0.5)).astype("f4"),
        "bias": (_uniform((width,), 1, number) - 0.5).astype("f4"),
      }
      before, number = width, number + 1
    heads[f"head_{level}"] = _uniform((before,), 2, level).astype("f4")
  return {"vgg": vgg, **heads}


def images():
  """Two batches [3, 48, 64, 3] in [-1, 1]: far, near and equal ones."""
  one = 2 * _uniform((3, 48, 64, 3), 3) - 1
  two = 2 * _uniform((3, 48, 64, 3), 4) - 1
  two[1] = 0.9 * one[1] + 0.1 * two[1]
  two[2] = one[2]
  return one.astype("f4"), two.astype("f4")


def levels(vgg, x):
  """The features of each level of VGG16, by torch's convolutions."""
  import torch
  from torch.nn import functional as F

  number = 0
  for level, widths in enumerate(WIDTHS):
    x = F.max_pool2d(x, 2) if level else x
    for _ in widths:
      layer = vgg[f"conv_{number}"]
      kernel = torch.tensor(layer["kernel"]).permute(3, 2, 0, 1)
      x = F.relu(F.conv2d(x, kernel, torch.tensor(layer["bias"]), padding=1))
      number += 1
    yield x


def reference():
  """The distances of `images`."""
  import torch

  tree, (one, two) = params(), images()
  shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
  scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

  def features(x):
    units = (torch.tensor(x).permute(0, 3, 1, 2) - shift) / scale
    for level in levels(tree["vgg"], units):
      yield level / ((level**2).sum(1, keepdim=True).sqrt() + 1e-10)

  total = 0.0
  for level, (a, b) in enumerate(
    zip(features(one), features(two), strict=True)
  ):
    head = torch.tensor(tree[f"head_{level}"])[:, None, None]
    total += ((a - b) ** 2 * head).sum(1).mean((1, 2))
  return total.tolist()


if __name__ == "__main__" and "--write" in sys.argv:
  PATH.write_text(json.dumps(reference()) + "\n")
