"""The autoencoder of Wan 2.1 as diffusers has it: `AutoencoderKLWan`.

Mean and deviation of each channel of its latents stand in its config.
"""

import re

from goku_jax.convert import tensors
from goku_jax.models import vae, wan_vae
from goku_jax.typing import UserError

KIND = "AutoencoderKLWan"
SETTINGS = {
  "is_residual": (False,),  # True is Wan 2.2's
  "patch_size": (None,),
  "attn_scales": ([],),
}
RENAMES = (
  (r"level_(\d+)_block_(\d+)", r"up_blocks.\1.resnets.\2"),  # of the decoder
  (r"level_(\d+)_up", r"up_blocks.\1.upsamplers.0"),
  (r"mid_block_(\d+)", r"mid_block.resnets.\1"),
  (r"mid_attn", "mid_block.attentions.0"),
  (r"\bqkv$", "to_qkv"),
  (r"\bout$", "proj"),
  (r"conv2d", "resample.1"),
  (r"\btime$", "time_conv"),
  (r"(conv|norm)_0", r"\g<1>1"),
  (r"(conv|norm)_1", r"\g<1>2"),
  (r"shortcut", "conv_shortcut"),
  (r"encoder.quant", "quant_conv"),
  (r"decoder.quant", "post_quant_conv"),
)
WINDOWS = {
  "conv2d": (3, 3),
  "time": (3, 1, 1),
  "qkv": (1, 1),
  "out": (1, 1),
  "quant": (1, 1, 1),
  "shortcut": (1, 1, 1),
}


def read(source, sha256: str | None = None) -> tuple[dict, dict]:
  """Our tree and config of diffusers' folder or file."""
  found, theirs = tensors.read(source, KIND, sha256)
  tensors.check_settings(theirs, SETTINGS)
  try:
    sizes = _sizes(theirs)
    stats = {f"latent_{k}": theirs[f"latents_{k}"] for k in ("mean", "std")}
  except KeyError as error:
    raise UserError(f"config.json of --source has no {error}") from error
  model = vae.make_vae(**sizes)
  wanted = vae.abstract_params(model)
  tree = tensors.to_tree(found, wanted, _place_fn(model.config))
  before = {"config": theirs, "dtype": tensors.dtype_of(found)}
  return tree, {"model": sizes, **stats, "diffusers": before}


def write(tree: dict, config: dict) -> tuple[dict, dict]:
  """Diffusers' tensors and config of our weights.

  Raises:
    UserError: diffusers has no such architecture.
  """
  cfg = vae.make_vae(**config["model"]).config
  if not isinstance(cfg, wan_vae.WanConfig):
    raise UserError(f"{KIND} is variant=wan, and these weights are not")
  before = config.get("diffusers", {})
  levels = range(len(cfg.multipliers) - 1)
  theirs = {
    "_class_name": KIND,
    "base_dim": cfg.width,
    "z_dim": cfg.latent_channels,
    "dim_mult": list(cfg.multipliers),
    "num_res_blocks": cfg.blocks,
    "attn_scales": [],
    "temperal_downsample": [cfg.halves_time(i) for i in levels],
    "in_channels": cfg.channels,
    "out_channels": cfg.channels,
    "latents_mean": config["latent_mean"],
    "latents_std": config["latent_std"],
    "scale_factor_temporal": cfg.stride[0],
    "scale_factor_spatial": cfg.stride[1],
  }
  found = tensors.to_tensors(
    tree, _place_fn(cfg), before.get("dtype", "float32")
  )
  return found, theirs | before.get("config", {})


def _sizes(theirs):
  halves = theirs["temperal_downsample"]
  sizes = dict(
    variant="wan",
    width=theirs["base_dim"],
    multipliers=list(theirs["dim_mult"]),
    time_levels=sum(halves),
    blocks=theirs["num_res_blocks"],
    latent_channels=theirs["z_dim"],
    channels=theirs.get("in_channels", 3),
  )
  if halves != sorted(halves):
    raise UserError(f"temperal_downsample={halves}: the deepest alone may be")
  if theirs.get("decoder_base_dim") not in (None, sizes["width"]):
    raise UserError("decoder_base_dim is not base_dim, which only Wan 2.2 has")
  return sizes


def _place_fn(cfg):
  last = len(cfg.multipliers) - 1

  def number(match):
    """The encoder of diffusers is one list of blocks and downsamplings."""
    level, block = int(match[1]), match[2]
    block = cfg.blocks if block is None else int(block)
    return f"down_blocks.{level * (cfg.blocks + 1) + block}"

  def place_of(path):
    *modules, leaf = path.split("/")
    stem = ".".join(modules)
    if modules[0] == "encoder":
      stem = re.sub(r"level_(\d+)_(?:block_(\d+)|down)", number, stem)
    else:  # counts levels from the latents
      flip = lambda match: f"level_{last - int(match[1])}"
      stem = re.sub(r"level_(\d+)", flip, stem)
    for pattern, their in RENAMES:
      stem = re.sub(pattern, their, stem)
    if leaf == "scale":
      # Attention works on single frames, so its norm knows no time.
      behind = (1, 1) if "mid_attn" in modules else (1, 1, 1)
      return tensors.Place((f"{stem}.gamma",), behind)
    if leaf == "bias":
      return tensors.Place((f"{stem}.bias",))
    return tensors.Place(
      (f"{stem}.weight",), WINDOWS.get(modules[-1], (3, 3, 3))
    )

  return place_of
