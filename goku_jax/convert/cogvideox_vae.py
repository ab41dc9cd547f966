"""The autoencoder of CogVideoX as diffusers has it: `AutoencoderKLCogVideoX`.

Its latents are scaled by one number, the reciprocal of their deviation.
"""

import math
import re

import numpy as np

from goku_jax.convert import tensors
from goku_jax.models import vae
from goku_jax.typing import UserError

KIND = "AutoencoderKLCogVideoX"
SETTINGS = {
  "act_fn": ("silu",),
  "norm_eps": (1e-6,),
  "use_quant_conv": (False,),
  "use_post_quant_conv": (False,),
}
RENAMES = (
  (r"level_(\d+)_block_(\d+)", r"{side}_blocks.\1.resnets.\2"),
  (r"level_(\d+)_\w+\.conv2d", r"{side}_blocks.\1.{side}samplers.0.conv"),
  (r"mid_block_(\d+)", r"mid_block.resnets.\1"),
  (r"\bconv_(in|out)", r"conv_\1.conv"),
  (r"conv_0", "conv1.conv"),
  (r"conv_1", "conv2.conv"),
  (r"norm_0", "norm1"),
  (r"norm_1", "norm2"),
  (r"\bnorm$", "norm_layer"),
  (r"shortcut", "conv_shortcut"),
)


def read(source, sha256: str | None = None) -> tuple[dict, dict]:
  """Our tree and config of diffusers' folder or file."""
  found, theirs = tensors.read(source, KIND, sha256)
  tensors.check_settings(theirs, SETTINGS)
  try:
    sizes = _sizes(theirs)
    std = 1 / theirs["scaling_factor"]
  except KeyError as error:
    raise UserError(f"config.json of --source has no {error}") from error
  model = vae.make_vae(**sizes)
  wanted = vae.abstract_params(model)
  tree = tensors.to_tree(found, wanted, _place_fn(model))
  return tree, {
    "model": sizes,
    "latent_mean": [0.0] * sizes["latent_channels"],
    "latent_std": [std] * sizes["latent_channels"],
    "diffusers": {"config": theirs, "dtype": tensors.dtype_of(found)},
  }


def write(tree: dict, config: dict) -> tuple[dict, dict]:
  """Diffusers' tensors and config of our weights.

  Raises:
    UserError: diffusers has no such architecture.
  """
  model = vae.make_vae(**config["model"])
  cfg = model.config
  fits = isinstance(cfg, vae.VAEConfig) and (
    cfg.norm == "group"
    and math.prod(cfg.patch) == 1
    and cfg.mid_blocks == 2
    and cfg.decoder_blocks == cfg.encoder_blocks + 1
  )
  if not fits:
    raise UserError(
      f"{KIND} has norm=group, no patch, two mid blocks, and one block a level"
      " more in the decoder than in the encoder; these weights have not"
    )
  before = config.get("diffusers", {})
  widths = [cfg.width * m for m in cfg.multipliers]
  theirs = {
    "_class_name": KIND,
    "in_channels": cfg.channels,
    "out_channels": cfg.channels,
    "block_out_channels": widths,
    "down_block_types": ["CogVideoXDownBlock3D"] * len(widths),
    "up_block_types": ["CogVideoXUpBlock3D"] * len(widths),
    "latent_channels": cfg.latent_channels,
    "layers_per_block": cfg.encoder_blocks,
    "norm_num_groups": cfg.groups,
    "temporal_compression_ratio": 2**cfg.time_levels,
    # One number for all channels, where ours has one for each.
    "scaling_factor": float(np.mean(np.square(config["latent_std"])) ** -0.5),
  }
  found = tensors.to_tensors(
    tree, _place_fn(model), before.get("dtype", "float32")
  )
  return found, theirs | before.get("config", {})


def _sizes(theirs):
  widths = theirs["block_out_channels"]
  if any(width % widths[0] for width in widths):
    raise UserError(
      f"block_out_channels={widths} are not multiples of the first"
    )
  return dict(
    variant="goku",
    width=widths[0],
    multipliers=[width // widths[0] for width in widths],
    time_levels=int(math.log2(theirs["temporal_compression_ratio"])),
    encoder_blocks=theirs["layers_per_block"],
    decoder_blocks=theirs["layers_per_block"] + 1,
    mid_blocks=2,
    latent_channels=theirs["latent_channels"],
    norm="group",
    groups=theirs["norm_num_groups"],
    channels=theirs["in_channels"],
  )


def _place_fn(model):
  last = len(model.config.multipliers) - 1

  def place_of(path):
    *modules, leaf = path.split("/")
    stem, side = ".".join(modules), "down"
    if modules[0] == "decoder":  # it counts levels from the latents
      flip = lambda match: f"level_{last - int(match[1])}"
      stem, side = re.sub(r"level_(\d+)", flip, stem), "up"
    for pattern, their in RENAMES:
      stem = re.sub(pattern, their.format(side=side), stem)
    stems = [stem]
    if modules[-1] == "modulation":
      parts = ("conv_y.conv", "conv_b.conv")  # scale, shift
      stems = [stem.replace("modulation", part) for part in parts]
    name = "bias" if leaf == "bias" else "weight"
    window = ()
    if leaf == "kernel":
      window = {"conv2d": (3, 3)}.get(modules[-1], (3, 3, 3))
      if modules[-1] in ("modulation", "shortcut"):
        window = (1, 1, 1)
    return tensors.Place(tuple(f"{s}.{name}" for s in stems), window)

  return place_of
