"""Text-semantic pairing: text-to-image alone (section 2.4, the first stage).

Of 100 M public pairs (section 4.1). With 160 M pairs in all the paper's 2B
reaches 0.70 on GenEval, 0.76 with rewritten prompts, and 83.65 on DPG-Bench
(Tables 5 and 6).

  python -m goku_jax.train --config=configs/t2i.py:variant=2b \
    --config.data.path=LATENTS --workdir=T2I

The paper gives neither resolution nor steps: the cascade's first rung, and as
many images as GenTron saw. What a slice needs, and how long a step takes there
at best: `python -m goku_jax.plan --config=configs/t2i.py:variant=2b
--topology=v5p:8x8x4`. variant, text and debug are those of configs/joint.py.
"""

from configs import joint


def get_config(arg=None):
  """Images alone, of the first rung by default."""
  arg = joint.read(arg, res="288p")
  config = joint.stage(arg)
  config.data.image_share = 1.0
  config.sample.num_frames = 1
  stride = 8 if arg.variant == "digits" else 16  # of a token
  height, width = config.sample.size
  config.plan.segment = height * width // stride**2
  return config
