"""Does flow win? The paper's comparisons in small.

  python -m goku_jax.ablations --config=configs/ablations.py --workdir=DIR

Table 2, Figures 5a and 5b and the positions of section 2.2, on the digits that
come with the package. Run again it goes on where it stopped; parts may be left
out (--config.parts=images,clips). debug shrinks everything.
"""

import ml_collections as mlc

from configs import common, digits


def get_config(arg=None):
  """Everything but what is compared; `debug` shrinks it."""
  arg = common.parse_arg(arg, debug=False)
  pick = lambda real, debug: debug if arg.debug else real
  of_digits = lambda *more: digits.get_config(
    ",".join((*more, f"debug={str(arg.debug).lower()}"))
  )
  config = mlc.ConfigDict()
  config.stage = "ablations"
  config.parts = "images,clips,joint,sizes,positions"
  config.seeds = pick(3, 2)
  # Of each run of a part; of positions before the change of resolution too.
  config.steps = dict(
    images=pick(4000, 4),
    clips=pick(1500, 4),
    joint=pick(700, 4),
    sizes=pick(1000, 4),
    positions=pick(800, 4),
  )
  config.checkpoints = pick(5, 2)  # that are judged, evenly over the steps
  config.num_images = pick(300, 16)  # drawn, and real ones
  config.num_clips = pick(105, 8)
  config.calls = pick(50, 2)  # of the model a sample
  # At the last checkpoint; a solver with two a step takes half the steps.
  config.sweep = pick((1, 2, 4, 8, 16, 32, 100), (1, 2))
  # Of images by class; before and after the change of resolution.
  config.sides = dict(images=16, small=pick(24, 16), large=32)
  config.num_frames = dict(small=pick(13, 5), large=pick(17, 5))
  config.vae = of_digits("stage=vae")
  # The smallest digits teach the finest strokes.
  config.vae.data.digits.canvas = config.sides.small
  config.vae.data.digits.num_frames = config.num_frames.small
  config.vae.data.num_clips = config.vae.data.num_images = pick(3, 8)
  config.latents = of_digits("stage=prepare")
  config.images = of_digits("condition=class")
  config.images.model.patch_size = (1, 4, 4)  # of pixels
  config.images.data.image_share = 1.0
  config.images.data.digits = dict(
    canvas=config.sides.images,
    num_frames=1,
    num_samples=12_000,
    image_share=1.0,
  )
  config.images.data.pack = dict(tokens=128, text=256, segments=8)
  config.images.optim.learning_rate = 4e-3  # classes are learnt late by 2e-3
  config.clips = of_digits()
  for flow in (config.images, config.clips):
    flow.optim.schedule = "constant"  # else checkpoints before the last lose
    flow.ema_decay = 0.995
    flow.loss.time.shift = 1.0  # as all are sampled: it is the flow's alone
    del flow.evals  # they are judged alike, here
    flow.sample.num_steps = 1  # of the one picture that ends a run
  return config
