"""Distances between what a flow model draws and what is real, by suite.

  python -m goku_jax.eval --workdir=RUN --suite=fid \\
    --config=configs/distances.py --config.evals.fid.weights=INCEPTION \\
    --config.evals.fid.reference=VIRTUAL_imagenet256_labeled.npz

weights is a folder that `convert` wrote: --format=inception_fid for fid,
--format=i3d for fvd, --format=lpips for vgg16 (whose weights anyone can have).
Table 2 of the paper has FID-50K of class-conditional samples; UCF-101's tables
have FVD of 2,048 clips of 16 frames (StyleGAN-V) or other conventions.
"""

import ml_collections as mlc
from ml_collections import config_dict


def get_config():
  """The section `evals` alone."""
  config = mlc.ConfigDict()
  config.evals = dict(
    fid=distance(num_samples=50_000, num_frames=1),
    fvd=distance(
      num_samples=2048,
      num_frames=17,  # drawn, of which the first are compared
      clip_frames=16,
      protocol="styleganv",  # or videogpt
    ),
    vgg16=distance(num_samples=5000, num_frames=1),
  )
  return config


def distance(**changes):
  """Settings of one suite."""
  return (
    dict(
      every_steps=0,  # of training, after which it is run there; 0: never
      weights=config_dict.placeholder(str),
      # A folder of pictures or videos, or for fid an .npz; digits need none.
      reference=config_dict.placeholder(str),
      prompts=config_dict.placeholder(str),  # a file; classes, digits: none
      size=config_dict.placeholder(tuple),  # height, width; None: as trained
      num_steps=50,
      guidance_scale=5.0,
      shift=3.0,
      seed=0,
    )
    | changes
  )
