"""The joint image and video autoencoder, on films.

Section 2.1 of the paper trains it as CogVideoX does (arXiv:2408.06072, 2.1):
stage 1 on 17 frames of 256x256 at 8 or 16 frames a second, stage 2 on long
clips, their frames split over devices. L1, LPIPS and KL, and after a few
thousand steps a discriminator; the weights of the losses are not given.

  python -m goku_jax.prepare --config=configs/vae.py:shots \
    --config.data.path=FILMS --workdir=SHOTS
  python -m goku_jax.train --config=configs/vae.py:variant=small \
    --config.data.path=SHOTS --workdir=VAE
  python -m goku_jax.train --config=configs/vae.py:variant=small,stage=2 \
    --config.data.path=SHOTS --config.init_from=VAE --workdir=VAE2

Any folder of videos and pictures will do for data.path; the first command
cuts long films into shots that are fast to read from anywhere.

Variants: `goku` has the published 215.6 M parameters, for accelerators;
`small` has the same 8x8x4 stride and 16 channels, for two CPU cores; `debug`
shrinks everything. `small` and `debug` leave LPIPS and the discriminator off,
which cost more than they do.
"""

import ml_collections as mlc
from ml_collections import config_dict

from configs import common

# Crop in pixels, clips and images a step, steps, update rule, learning rate,
# weight of L2.
SIZES = {
  "goku": dict(
    crop=256,
    num_clips=32,
    num_images=32,
    steps=200_000,
    rule="adamw",
    rate=1e-4,
    l2=0.0,
  ),
  "small": dict(
    crop=128,
    num_clips=1,
    num_images=1,
    steps=1_500,
    rule="muon",
    rate=1e-3,
    l2=5.0,
  ),
  "debug": dict(
    crop=16,
    num_clips=8,
    num_images=8,
    steps=20,
    rule="adamw",
    rate=2e-3,
    l2=1.0,
  ),
}


def get_config(arg=None):
  """The training of a variant, or `shots`: the cutting of films before it."""
  arg = common.parse_arg(arg, variant="small", stage=1, shots=False)
  if arg.variant not in SIZES:
    raise ValueError(f"variant={arg.variant!r} is not one of {sorted(SIZES)}")
  if arg.stage not in (1, 2):
    raise ValueError(f"stage={arg.stage} is not 1 or 2")
  goku, debug = arg.variant == "goku", arg.variant == "debug"
  size = SIZES[arg.variant]
  config = mlc.ConfigDict()
  if arg.shots:
    config.stage = "shots"
    config.data = dict(
      path=config_dict.placeholder(str),  # a folder of films
      shots=dict(resolution=360, threshold=20.0, min_frames=17),
    )
    return config
  config.stage = "vae"
  config.seed = 0
  config.model = dict(
    variant=arg.variant,
    dtype="bfloat16" if goku else "float32",  # beside a float32 state
    remat=goku,  # blocks compute again backwards and keep their inputs
  )
  config.data = dict(
    path=config_dict.placeholder(str),  # a folder of videos and pictures
    videos=dict(
      num_frames=5 if debug else 17,
      fps=(8.0, 16.0),
      crop=size["crop"],
      resolution=0 if debug else 360,  # of the short side; 0: as it is
      held_out=0.1,  # of the shots
      segment_frames=0,  # a shot in a file; else files are cut into as many
    ),
    num_clips=size["num_clips"],  # a step, over all devices
    num_images=size["num_images"],
  )
  config.loss = dict(
    l1_weight=1.0,
    l2_weight=size["l2"],
    kl_weight=1e-5,  # of the mean over latent numbers
    lpips_weight=1.0 if goku else 0.0,
    lpips_path=config_dict.placeholder(str),  # by convert --format=lpips
    lpips_frames=1,  # of each clip, at random
    gan=dict(
      weight=0.1 if goku else 0.0,  # 0: none
      start_step=2 if debug else 5000,
      width=16 if debug else 64,
      num_layers=2 if debug else 3,
      spectral_norm=False,  # in place of the norms of its features
      r1_weight=0.0,
    ),
  )
  config.evals = dict(
    reconstruction=common.reconstruction(
      size=(16, 16) if debug else (256, 256),
      scale=False,
      held_out=config.data.videos.held_out,
    )
  )
  # The discriminator's adaptive weight is of each micro-batch.
  common.training(
    config,
    total_steps=size["steps"],
    warmup_steps=1 if debug else 100,
    learning_rate=size["rate"],
    rule=size["rule"],
    every_steps=5 if debug else 500,
  )
  config.show_every_steps = 20 if debug else 500
  if arg.stage == 2:
    lengthen(config, debug)
  return config


def lengthen(config, debug):
  """Stage 2: long clips, no stills, frames split over all devices.

  A stride of 4 makes 4 k + 1 frames k + 1 latents, which the devices divide:
  157 frames are 40 latents (CogVideoX has 161, which are 41).
  """
  config.data.videos.num_frames = 29 if debug else 157
  config.data.videos.fps = (16.0,)
  config.data.num_clips = 1
  config.data.num_images = 0
  config.optim.learning_rate /= 5
  config.mesh.update(fsdp=1, sequence=-1)
