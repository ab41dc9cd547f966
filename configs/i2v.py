"""Image-to-video (section 2.5): clips from their first frame and a caption.

From the weights of text-to-video (configs/finetune.py), for 10,000 steps on
4.5 M triplets (sections 4.1 and 5.3); one layer is new, and at first passes all
through. config.data.given says what is given of the clips, how noisy it is, and
how often nothing is; the paper is silent there.

  python -m goku_jax.train --config=configs/i2v.py:variant=8b \
    --config.data.path=LATENTS --config.init_from=T2V --workdir=I2V
  python -m goku_jax.sample --workdir=I2V --image=FIRST.png \
    --prompt="she turns around" --out=clip.mp4

kinds=all gives first and last frames and runs to be continued as well. variant,
res, text and debug are those of configs/joint.py.
"""

from configs import joint

KINDS = {
  "first": dict(first=0.9),
  "all": dict(first=0.5, first_last=0.2, run=0.2),
}


def get_config(arg=None):
  """What is given: the `first` frame (default), or `all` kinds."""
  arg = joint.read(arg, kinds="first")
  if arg.kinds not in KINDS:
    raise ValueError(f"kinds={arg.kinds!r} is not one of {', '.join(KINDS)}")
  config = joint.stage(arg, **KINDS[arg.kinds])
  config.data.image_share = 0.0
  if arg.variant == "digits":
    config.sample.guidance_scale = 3.0
  else:
    config.optim.learning_rate /= 5
  config.total_steps = min(config.total_steps, 10_000)
  return config
