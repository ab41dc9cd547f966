"""Moving handwritten digits: the data that comes with the package.

Reproduces section 2 of the paper at the size of a laptop: a joint image and
video autoencoder (stage=vae) and, on its latents, a text-steered flow model on
packed images and clips. Twenty minutes on two CPU cores for all of it, see
launch/quickstart.sh.

  python -m goku_jax.train --config=configs/digits.py:stage=vae --workdir=VAE
  python -m goku_jax.prepare --config=configs/digits.py:stage=prepare \
    --config.vae.workdir=VAE --workdir=LATENTS
  python -m goku_jax.train --config=configs/digits.py \
    --config.data.path=LATENTS --workdir=FLOW

Without data.path the flow model is trained on the pixels themselves. It is
steered by captions; condition=class takes the digit as a class in their place,
as the paper's pilot on ImageNet does (section 2.3), condition=both takes both.
given tells it of frames of the clips as well, above all the first (section
2.5), best from the weights of one that was not:

  python -m goku_jax.train --config=configs/digits.py:given \
    --config.data.path=LATENTS --config.init_from=FLOW --workdir=I2V

lora trains low-rank adapters alone, on the weights of one step of a run:

  python -m goku_jax.train --config=configs/digits.py:lora \
    --config.data.path=LATENTS --config.init_from=FLOW:3000 --workdir=LORA
"""

import ml_collections as mlc
from ml_collections import config_dict

from configs import common


def get_config(arg=None):
  """A stage: `flow` (default), `vae` or `prepare`; `debug` shrinks it."""
  arg = common.parse_arg(
    arg, stage="flow", debug=False, condition="text", given=False, lora=False
  )
  stages = {"flow": flow, "vae": vae, "prepare": prepare}
  if arg.stage not in stages:
    raise ValueError(f"stage={arg.stage!r} is not one of {sorted(stages)}")
  config = mlc.ConfigDict()
  config.stage = arg.stage
  config.seed = 0
  stages[arg.stage](config, arg.debug)
  if arg.given:
    add_given(config, arg.debug)
  if arg.lora:
    add_lora(config)
  if arg.condition != "text":
    add_classes(config, arg.condition)
  return config


def canvas(debug):
  """Frames and pixels of a clip."""
  return dict(num_frames=5 if debug else 17, canvas=16 if debug else 32)


def vae(config, debug):
  """The autoencoder: 4x4x4 and 4 channels, for a canvas of 32 pixels."""
  common.training(
    config,
    total_steps=20 if debug else 1000,
    warmup_steps=1 if debug else 50,
    every_steps=5 if debug else 250,
  )
  config.model = dict(
    variant="debug" if debug else "digits",
    dtype="float32",  # of matrix products; bfloat16 keeps float32 parameters
  )
  config.data = dict(
    digits=canvas(debug),
    num_clips=8 if debug else 2,  # a step, over all devices
    num_images=8 if debug else 2,
  )
  config.loss = dict(kl_weight=1e-3, l2_weight=1.0)
  side = config.data.digits.canvas
  config.evals = dict(
    reconstruction=common.reconstruction(
      num_frames=config.data.digits.num_frames, size=(side, side)
    )
  )


def prepare(config, debug):
  """Digits to latents."""
  config.vae = dict(
    workdir=config_dict.placeholder(str),  # of a run with stage=vae
    step=config_dict.placeholder(int),  # of its checkpoints; the newest
  )
  config.data = dict(
    digits=canvas(debug)
    | dict(num_samples=64 if debug else 12_000, split="train"),  # or test
  )
  config.encode = common.encode()
  config.text = common.text()
  config.items_per_shard = 32 if debug else 4_000
  config.max_dropped = 0.0
  config.threads = 2


def flow(config, debug):
  """The joint flow model."""
  common.training(
    config,
    total_steps=20 if debug else 3000,
    warmup_steps=1 if debug else 100,
    every_steps=5 if debug else 500,
  )
  config.model = dict(
    variant="debug" if debug else "digits",
    text=dict(width=32 if debug else 64, depth=1, num_heads=2),
    dtype="float32",
  )
  # Goku's own patch on latents; debug reads pixels, which are more.
  config.model.patch_size = (1, 4, 4) if debug else (1, 2, 2)
  config.data = dict(
    path=config_dict.placeholder(str),  # latents by prepare; pixels without
    digits=canvas(debug) | dict(num_samples=4096),  # of the pixels
    **common.packing(
      max_text=32,
      tokens=80 if debug else 160,
      text=64,
      segments=8,
      num_packs=8 if debug else 4,
      lookahead=256 if debug else 1024,
    ),
  )
  config.attention = common.attention()
  config.loss = common.loss(shift=3.0)
  config.sample = dict(  # drawn during training; defaults of the job sample
    prompts=(
      "the digit five moves left",
      "the digit eight moves down right quickly",
      "the digit zero stays still",
      "the digit three moves up slowly",
    ),
    class_labels=(),  # of a model with classes, one for each prompt
    num_frames=5 if debug else 17,
    size=(16, 16) if debug else (32, 32),
    num_steps=4 if debug else 25,
    guidance_scale=5.0,
    shift=3.0,
    shift_tokens=0,  # as loss.time has it
    seed=0,
    fit="crop",  # given frames of another aspect; or pad
  )
  config.evals = dict(  # by suite, read by the job eval and by training
    losses=common.losses(num_samples=16 if debug else 256),
    digits=dict(
      every_steps=0,
      num_videos=8 if debug else 252,
      num_steps=4 if debug else 25,
      guidance_scale=5.0,
      shift=3.0,
      seed=0,  # of noise and of the judge
    ),
  )


def add_classes(config, condition):
  """Steers the flow model by the digit, beside the captions or alone."""
  if config.stage != "flow" or condition not in ("class", "both"):
    raise ValueError(
      f"condition={condition!r} is not one of text, class, both of stage=flow"
    )
  config.model.num_classes = 10
  config.sample.class_labels = (5, 8, 0, 3)
  if condition == "class":
    del config.model.text
    config.sample.prompts = ()


def add_given(config, debug):
  """Tells the flow model of frames of the clips."""
  if config.stage != "flow":
    raise ValueError("given is of stage=flow")
  config.model.conditioned = True
  config.data.given = common.given()
  if not debug:
    config.total_steps *= 2
  # A first frame needs less of it than a caption alone.
  config.sample.guidance_scale = config.evals.digits.guidance_scale = 3.0


def add_lora(config):
  """Trains adapters alone."""
  if config.stage != "flow":
    raise ValueError("lora is of stage=flow")
  config.model.lora = common.lora()
