"""Joint image and video training at Goku's size (sections 2.4 and 3.3).

The cascade's rungs are res=288p, 480p and 720p; a pack holds the longest clip,
10 s at 24 frames a second, or images and shorter clips of the same number of
tokens. Latents and embeddings of FLAN-T5 XL come from `prepare`
(configs/clips.py:stage=prepare,text=t5):

  python -m goku_jax.train --config=configs/joint.py:variant=8b,res=720p \
    --config.data.path=LATENTS --workdir=FLOW

`config.topologies` says how known slices are split; set `config.mesh` to one of
them. What fits where, and how fast it can be at most:

  python -m goku_jax.plan --config=configs/joint.py:variant=8b,res=720p \
    --topology=v5p:8x8x4

The paper gives neither rates nor batches: those of CogVideoX and GenTron.
debug shrinks everything to a CPU.
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
RINGS = {"8b": 1, "8b-hd128": 2, "2b": 4, "2b-hd128": 8, "debug": 1}


def get_config(arg=None):
  """Joint training from latents."""
  arg = common.parse_arg(arg, variant="8b", res="720p", debug=False)
  for key, known in (("variant", RINGS), ("res", RUNGS)):
    if arg[key] not in known:
      raise ValueError(f"{key}={arg[key]!r} is not one of {', '.join(known)}")
  longest, tokens, num_packs = RUNGS[arg.res]
  config = mlc.ConfigDict()
  config.stage, config.seed = "flow", 0
  common.training(
    config,
    total_steps=4 if arg.debug else 200_000,
    warmup_steps=1 if arg.debug else 1000,
    learning_rate=1e-4,
    every_steps=2 if arg.debug else 1000,
  )
  config.optim.schedule = "constant"
  config.optim.b2 = 0.95
  config.ema_decay = 0.9999
  config.model = dict(
    variant="debug" if arg.debug else arg.variant,
    dtype="float32" if arg.debug else "bfloat16",
    remat="full",
    text_width=2048,
    depth=config_dict.placeholder(int),  # layers; None: the variant's
    unroll=1,
  )
  config.data = dict(path=config_dict.placeholder(str))  # commas between
  config.data.update(
    common.packing(
      max_text=512,
      tokens=128 if arg.debug else tokens,
      text=256 if arg.debug else 8192,
      segments=4 if arg.debug else 64,
      num_packs=8 if arg.debug else num_packs,
      lookahead=32 if arg.debug else 8192,
    )
  )
  config.text = common.text()
  config.attention = common.attention(block=1024, key_block=2048)
  config.attention.ring = RINGS[arg.variant]
  config.loss = common.loss(shift=1.0 if arg.res == "288p" else 3.0)
  config.plan = dict(  # what a pack is taken to hold, by the job plan
    segment=96 if arg.debug else longest, text=64 if arg.debug else 512
  )
  # How slices are split, by plan: axes of the mesh as in `mesh`, and remat.
  split = dict(replica=1, fsdp=16, sequence=16, tensor=1)
  config.topologies = {
    "v5p:8x8x4": dict(mesh=split, remat="keep_attention"),
    "v6e:16x16": dict(mesh=split, remat="keep_attention"),
    "v5e:16x16": dict(mesh=split, remat="full"),
  }
  config.evals = dict(losses=common.losses())
  config.sample = dict(  # drawn during training; defaults of the job sample
    prompts=("a rabbit in a meadow", "the sky over a forest"),
    class_labels=(),
    num_frames=5 if arg.debug else 97,
    size=(32, 32) if arg.debug else SIZES[arg.res],
    num_steps=2 if arg.debug else 50,
    guidance_scale=5.0,
    shift=3.0,
    shift_tokens=0,  # as loss.time has it
    seed=0,
    fit="crop",  # given frames of another aspect; or pad
  )
  return config
