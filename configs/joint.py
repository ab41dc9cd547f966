"""Joint image and video training at Goku's size (sections 2.4 and 3.3).

The second stage, from the weights of the first (configs/t2i.py), and then from
rung to rung. The cascade's rungs are res=288p, 480p and 720p; a pack holds the
longest clip, 10 s at 24 frames a second, or images and shorter clips of the
same number of tokens. Latents and embeddings of FLAN-T5 XL come from `prepare`
(configs/clips.py:stage=prepare,text=t5):

  python -m goku_jax.train --config=configs/joint.py:variant=8b,res=288p \
    --config.data.path=LATENTS --config.init_from=T2I --workdir=JOINT

`config.topologies` says how known slices are split; set `config.mesh` to one of
them. What fits where, and how fast it can be at most:

  python -m goku_jax.plan --config=configs/joint.py:variant=8b,res=720p \
    --topology=v5p:8x8x4

The paper gives neither rates nor batches: those of CogVideoX and GenTron. Its
VBench total of 84.85 is of the fine-tuned 8B (configs/finetune.py).

text=bytes takes a text encoder that is trained with the model. variant=digits
is for the latents of the moving digits on two CPU cores, whose rungs are
canvases of 24, 32 and 40 pixels (launch/cascade.sh); debug shrinks everything.
"""

import ml_collections as mlc
from ml_collections import config_dict

from configs import common

# Tokens of 241 frames, 61 of latents; rounded up to blocks; packs.
RUNGS = {
  "288p": (35_136, 36_864, 96),
  "480p": (98_820, 100_352, 32),
  "720p": (219_600, 221_184, 16),
}
SIZES = {"288p": (288, 512), "480p": (480, 864), "720p": (720, 1280)}
# Of 16 devices that share a pack, how many parts a ring joins: Ulysses alone
# takes 48 heads, and its degree divides those of the others.
RINGS = {
  "8b": 1,
  "8b-hd128": 2,
  "2b": 4,
  "2b-hd128": 8,
  "digits": 1,
  "debug": 1,
}
CANVAS = {"288p": 24, "480p": 32, "720p": 40}  # of the digits
DIGITS = (
  "the digit five moves left",
  "the digit eight moves down right quickly",
  "the digit zero stays still",
  "the digit three moves up slowly",
)


def get_config(arg=None):
  """Joint training from latents."""
  return stage(read(arg))


def read(arg, **more):
  """The argument of a stage of Goku's recipe, by the defaults of all."""
  arg = common.parse_arg(
    arg, **dict(variant="8b", res="720p", text="", debug=False) | more
  )
  for key, known in (
    ("variant", RINGS),
    ("res", RUNGS),
    ("text", ("", "t5", "bytes")),
  ):
    if arg[key] not in known:
      raise ValueError(f"{key}={arg[key]!r} is not one of {', '.join(known)}")
  return arg


def stage(arg, **shares):
  """The config of a stage; `shares` are of what is given of clips, if it is."""
  is_digits = arg.variant == "digits"
  pick = lambda goku, digits, debug: (
    debug if arg.debug else digits if is_digits else goku
  )
  longest, tokens, num_packs = RUNGS[arg.res]
  config = mlc.ConfigDict()
  config.stage, config.seed = "flow", 0
  common.training(
    config,
    total_steps=pick(200_000, 600, 4),
    warmup_steps=pick(1000, 50, 1),
    learning_rate=pick(1e-4, 2e-3, 1e-4),
    every_steps=pick(1000, 300, 2),
  )
  config.optim.schedule = "constant"
  config.optim.b2 = 0.95
  config.ema_decay = pick(0.9999, 0.995, 0.9999)
  config.model = dict(
    variant="debug" if arg.debug else arg.variant,
    dtype=pick("bfloat16", "float32", "float32"),
    remat=pick("full", "none", "full"),
    depth=config_dict.placeholder(int),  # layers; None: the variant's
    unroll=pick(1, 6, 1),
  )
  if (arg.text or pick("t5", "bytes", "t5")) == "t5":
    config.text = common.text()
    config.model.text_width = 2048
  else:
    width = pick(512, 64, 32)
    config.model.text = dict(width=width, depth=pick(4, 1, 1), num_heads=2)
  config.data = dict(path=config_dict.placeholder(str))  # commas between
  config.data.update(
    common.packing(
      max_text=pick(512, 32, 512),
      tokens=pick(tokens, 160, 128),
      text=pick(8192, 64, 256),
      segments=pick(64, 8, 4),
      num_packs=pick(num_packs, 4, 8),
      lookahead=pick(8192, 1024, 32),
    )
  )
  if shares:
    config.model.conditioned = True
    config.data.given = common.given(**shares)
  config.attention = common.attention(block=1024, key_block=2048)
  config.attention.ring = RINGS[arg.variant]
  # Times nearer to noise for the larger rungs, and for the digits' few cells.
  shift = 1.0 if arg.res == "288p" and not is_digits else 3.0
  config.loss = common.loss(shift=shift)
  config.plan = dict(  # what a pack is taken to hold, by the job plan
    segment=pick(longest, 80, 96), text=pick(512, 32, 64)
  )
  # How slices are split, by plan: axes of the mesh as in `mesh`, and remat.
  split = dict(replica=1, fsdp=16, sequence=16, tensor=1)
  config.topologies = {
    "v5p:8x8x4": dict(mesh=split, remat="keep_attention"),
    "v6e:16x16": dict(mesh=split, remat="keep_attention"),
    "v5e:16x16": dict(mesh=split, remat="full"),
  }
  config.evals = dict(losses=common.losses())
  side = CANVAS[arg.res]
  config.sample = dict(  # drawn during training; defaults of the job sample
    prompts=DIGITS
    if is_digits
    else ("a rabbit in a meadow", "the sky over a forest"),
    class_labels=(),
    num_frames=pick(97, 13 if arg.res == "288p" else 17, 5),
    size=pick(SIZES[arg.res], (side, side), (32, 32)),
    num_steps=pick(50, 25, 2),
    guidance_scale=5.0,
    shift=3.0,
    shift_tokens=0,  # as loss.time has it
    seed=0,
    fit="crop",  # given frames of another aspect; or pad
  )
  return config
