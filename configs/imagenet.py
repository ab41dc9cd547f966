"""Flow against diffusion on ImageNet (section 2.3, Table 2), by class.

The paper's pilot: Goku-1B on 256x256 images, FID-50K without a word on batch,
rate or guidance. After 400,000 steps 2.16 by flow, 2.52 by DDPM; 2.26 by DDPM
after a million. That speaks for a batch of 1,024 to 2,048 and a guidance of
1.5.

  python -m goku_jax.train --config=configs/imagenet.py:objective=flow \
    --config.data.path=LATENTS --workdir=PILOT

LATENTS with classes come of a TFDS set with labels, or of the digits, which
have ten (--config.model.num_classes=10):

  python -m goku_jax.prepare --config=configs/clips.py:stage=prepare \
    --config.vae.workdir=VAE --config.data.path=tfds:imagenet2012 \
    --workdir=LATENTS

objective=flow or ddpm (linear schedule, epsilon); variant=1b, or b, DiT's base.
What a slice needs: `python -m goku_jax.plan --config=configs/imagenet.py
--topology=v5p:4x4x4`. debug shrinks everything.
"""

import ml_collections as mlc
from ml_collections import config_dict

from configs import common

VARIANTS = ("1b", "b")
OBJECTIVES = ("flow", "ddpm")
TOKENS = 256  # of an image: 32x32 latents, patches of 2x2


def get_config(arg=None):
  """The pilot, by an objective."""
  arg = common.parse_arg(arg, objective="flow", variant="1b", debug=False)
  for key, known in (("objective", OBJECTIVES), ("variant", VARIANTS)):
    if arg[key] not in known:
      raise ValueError(f"{key}={arg[key]!r} is not one of {', '.join(known)}")
  config = mlc.ConfigDict()
  config.stage, config.seed = "flow", 0
  common.training(
    config,
    total_steps=4 if arg.debug else 400_000,
    warmup_steps=1 if arg.debug else 1000,
    learning_rate=1e-4,
    every_steps=2 if arg.debug else 5000,
  )
  config.optim.schedule = "constant"
  config.optim.b2 = 0.999
  config.ema_decay = 0.9999
  config.model = dict(
    variant="debug" if arg.debug else arg.variant,
    num_classes=10 if arg.debug else 1000,
    dtype="float32" if arg.debug else "bfloat16",
    remat="full",
  )
  config.data = dict(path=config_dict.placeholder(str))
  config.data.update(
    common.packing(
      max_text=1,  # no model reads it
      tokens=64 if arg.debug else 16 * TOKENS,
      text=5 if arg.debug else 17,
      segments=4 if arg.debug else 16,
      num_packs=8 if arg.debug else 64,  # 1,024 images
      lookahead=32 if arg.debug else 8192,
    )
  )
  config.data.image_share = 1.0
  config.attention = common.attention()
  config.loss = common.loss()
  config.loss.objective = arg.objective
  config.loss.time.weights = dict(uniform=1.0, logit_normal=0.0, mode=0.0)
  config.plan = dict(segment=16 if arg.debug else TOKENS, text=1)
  config.evals = dict(losses=common.losses())
  config.sample = dict(  # drawn during training; defaults of the job sample
    prompts=(),
    class_labels=(1, 2) if arg.debug else (207, 360, 387, 974),
    num_frames=1,
    size=(32, 32) if arg.debug else (256, 256),
    num_steps=2 if arg.debug else 250,
    guidance_scale=1.5,
    shift=1.0,
    shift_tokens=0,
    seed=0,
    fit="crop",
  )
  return config
