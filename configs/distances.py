"""Distances between what a flow model draws and what is real, by suite.

  python -m goku_jax.eval --workdir=RUN --suite=fid \\
    --config=configs/distances.py --config.evals.fid.weights=INCEPTION \\
    --config.evals.fid.reference=VIRTUAL_imagenet256_labeled.npz

weights is a folder that `convert` wrote: --format=inception_fid for fid,
--format=i3d for fvd, --format=lpips for vgg16 (whose weights anyone can have),
--format=clip for clip_score. Table 2 of the paper has FID-50K of
class-conditional samples, Table 6 `ucf101`: a video for each caption of a file,
one a line, beside the 13,320 of the folder `reference`.
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
      num_real=2048,  # files, of each a clip; 0: all
      fps=0.0,  # of real clips; 0: as their files
      protocol="styleganv",  # or videogpt
    ),
    vgg16=distance(num_samples=5000, num_frames=1),
    clip_score=distance(
      num_samples=1000,
      num_frames=1,
      scaling="hessel",  # or torchmetrics, cosine
      prefix="A photo depicts ",  # before captions, as Hessel's program has it
    ),
    ucf101=distance(
      num_samples=13_320,
      num_frames=17,
      clip_frames=16,
      num_real=0,
      fps=0.0,
      i3d=config_dict.placeholder(str),  # folders of weights
      c3d=config_dict.placeholder(str),
      sizes=((128, 128), (256, 256), (240, 360)),  # height, width
    ),
  )
  del config.evals.clip_score.reference
  del config.evals.ucf101.weights, config.evals.ucf101.size
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
