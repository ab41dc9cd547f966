"""Fine-tuning of either branch (section 2.4, the third stage).

From the weights of the last rung of configs/joint.py: branch=t2i on images
alone, for their looks, of 60 M internal pairs (section 4.1); branch=t2v on
clips alone, for motion and stability. The paper's 8B then has a VBench total of
84.85 (Table 7).

  python -m goku_jax.train --config=configs/finetune.py:branch=t2v,variant=8b \
    --config.data.path=LATENTS --config.init_from=JOINT --workdir=T2V

lora trains low-rank adapters alone (config.model.lora), at the full rate, on
the weights that init_from=DIR:STEP names; `convert --format=lora` merges them.
Its FLOPs are told as if all weights had gradients.

The paper gives neither rates nor steps: a fifth of the rate, and those of
CogVideoX's last stage. variant, res, text and debug are those of
configs/joint.py, and so is what `plan` says.
"""

from configs import common, joint

BRANCHES = {"t2i": 1.0, "t2v": 0.0}  # share of images


def get_config(arg=None):
  """A branch: `t2v` (default) or `t2i`."""
  arg = joint.read(arg, branch="t2v", lora=False)
  if arg.branch not in BRANCHES:
    raise ValueError(f"branch={arg.branch!r} is not one of t2i, t2v")
  config = joint.stage(arg)
  config.data.image_share = BRANCHES[arg.branch]
  if arg.lora:
    config.model.lora = common.lora()
  elif arg.variant != "digits":  # whose rungs end before they have learnt all
    config.optim.learning_rate /= 5
  config.total_steps = min(config.total_steps, 10_000)
  if arg.branch == "t2i":
    config.sample.num_frames = 1
  elif arg.variant != "digits":
    # Waver's for video: more motion (arXiv:2508.15761).
    config.loss.time.weights = dict(uniform=0.0, logit_normal=0.0, mode=1.0)
  return config
