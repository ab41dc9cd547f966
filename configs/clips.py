"""Your own videos and pictures: from files to a joint model.

Section 2 of the paper on whatever a folder, a manifest, WebDataset tars or a
TFDS set holds (docs/data.md). `prepare` encodes it once; training then reads
latents:

  python -m goku_jax.prepare --config=configs/clips.py:stage=prepare \
    --config.data.path=DATA --config.vae.workdir=VAE --workdir=LATENTS
  python -m goku_jax.train --config=configs/clips.py \
    --config.data.path=LATENTS --workdir=FLOW

cached=false decodes and encodes beside the step instead:

  python -m goku_jax.train --config=configs/clips.py:cached=false \
    --config.data.path=DATA --config.vae.workdir=VAE --workdir=FLOW

res is a budget of pixels, kept in any proportions: 288p, 480p and 720p are the
cascade of section 3.3. text=t5 steers by FLAN-T5 (config.text.path) in place of
an encoder that is trained with the model. Variant `small` is for two CPU cores
and few pixels (res=128p); debug shrinks everything.
"""

import ml_collections as mlc
from ml_collections import config_dict

from configs import common

PIXELS = {
  "32p": 32 * 32,
  "128p": 128 * 128,
  "288p": 288 * 512,
  "480p": 480 * 864,
  "720p": 720 * 1280,
}


def get_config(arg=None):
  """A stage: `flow` (default) or `prepare`."""
  arg = common.parse_arg(
    arg,
    stage="flow",
    variant="small",
    res="128p",
    text="bytes",
    cached=True,
    debug=False,
  )
  choices = dict(
    stage=("flow", "prepare"), res=tuple(PIXELS), text=("bytes", "t5")
  )
  for key, known in choices.items():
    if arg[key] not in known:
      raise ValueError(f"{key}={arg[key]!r} is not one of {', '.join(known)}")
  config = mlc.ConfigDict()
  config.stage, config.seed = arg.stage, 0
  pixels = PIXELS["32p" if arg.debug else arg.res]
  if arg.stage == "prepare":
    raw(config, arg, pixels)
    config.items_per_shard = 4 if arg.debug else 512
  else:
    flow(config, arg, pixels)
  return config


def raw(config, arg, pixels):
  """Files to clips to latents, by `prepare` or beside the step."""
  config.data = dict(
    # A folder, .csv, .jsonl or .parquet, tars, ArrayRecord shards, tfds:NAME.
    path=config_dict.placeholder(str),
    clips=dict(
      fps=24.0,  # frames per second at most; 0: as the file
      min_frames=5 if arg.debug else 17,  # shorter files are left out
      max_frames=5 if arg.debug else 97,  # a file gives its longest clip
      step_frames=4 if arg.debug else 16,  # from one length to the next
      pictures=True,
      pixels=pixels,  # of a frame at most, in any proportions
      multiple=16,  # of its sides: the autoencoder's stride times the patch
      clips_per_file=1,  # at most
      captions="optional",  # or required: what has none is left out
      motion_score=True,  # ends captions, where the data has one
    ),
    decoder=dict(workers=2, seconds=60.0, memory_gib=4.0),
  )
  config.vae = dict(
    workdir=config_dict.placeholder(str),  # of a run with stage=vae, or weights
    step=config_dict.placeholder(int),  # of its checkpoints; the newest
  )
  config.encode = common.encode()
  config.text = common.text()
  config.max_dropped = 0.05  # share of items that may be left out
  config.threads = 2  # items read at once


def flow(config, arg, pixels):
  """The joint flow model."""
  common.training(
    config,
    total_steps=4 if arg.debug else 20_000,
    warmup_steps=1 if arg.debug else 500,
    learning_rate=1e-3,
    every_steps=2 if arg.debug else 500,
  )
  config.model = dict(
    variant="debug" if arg.debug else arg.variant, dtype="float32"
  )
  if arg.cached:
    config.data = dict(path=config_dict.placeholder(str))  # commas between
  else:
    raw(config, arg, pixels)
    config.data.augment = True  # a clip begins elsewhere at each visit
    config.data.flip = 0.0  # probability of a mirror image
    config.data.max_shapes = 64  # each compiles an encoder of its own
    config.data.statistics = 8 if arg.debug else 64  # samples, for the latents'
  if arg.text == "t5":
    config.text = common.text()
    config.model.text_width = 2048  # FLAN-T5 XL's
  else:
    config.model.text = dict(
      width=32 if arg.debug else 256, depth=1 if arg.debug else 2, num_heads=2
    )
  # The longest clip is one pack, and pictures fill the rest: 97 frames are 25
  # latents, and a token has 16x16 pixels of one.
  largest = 128 if arg.debug else pixels // 256 * 25
  config.data.update(
    common.packing(
      max_text=512 if arg.text == "t5" else 128,
      tokens=largest,
      text=160 if arg.debug else 2048,
      segments=4 if arg.debug else 32,
      num_packs=8 if arg.debug else 4,
      lookahead=32 if arg.debug else 1024,
    )
  )
  config.attention = common.attention()
  config.loss = common.loss(shift=3.0)
  side = int(pixels**0.5) // 16 * 16
  config.sample = dict(  # drawn during training; defaults of the job sample
    prompts=("a rabbit in a meadow", "the sky over a forest"),
    class_labels=(),
    num_frames=5 if arg.debug else 17,
    size=(side, side),
    num_steps=2 if arg.debug else 25,
    guidance_scale=5.0,
    shift=3.0,
    shift_tokens=0,  # as loss.time has it
    seed=0,
    fit="crop",  # given frames of another aspect; or pad
  )
