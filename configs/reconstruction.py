"""How an autoencoder without a run of its own is judged: converted weights.

  python -m goku_jax.eval --suite=reconstruction --workdir=WEIGHTS \
    --data=FOLDER --config=configs/reconstruction.py

protocol=ucf101 is that of the tables in CogVideoX's line (Seaweed,
arXiv:2504.08685: PSNR 34.30, SSIM 0.9650, LPIPS 0.0623 for CogVideoX's): the
first 17 frames of each of UCF-101's 13,320 videos at their own 25 frames a
second, the short side scaled to 256 and the centre 256x256 kept.
"""

import ml_collections as mlc

from configs import common

PROTOCOLS = {
  "": dict(size=(0, 0)),  # files as they are
  "ucf101": dict(num_frames=17, size=(256, 256), frames="refuse"),
}


def get_config(arg=None):
  """The section `evals` alone."""
  arg = common.parse_arg(arg, protocol="")
  if arg.protocol not in PROTOCOLS:
    raise ValueError(
      f"protocol={arg.protocol!r} is not one of {sorted(PROTOCOLS)}"
    )
  config = mlc.ConfigDict()
  settings = common.reconstruction(**PROTOCOLS[arg.protocol])
  config.evals = dict(reconstruction=settings)
  return config
