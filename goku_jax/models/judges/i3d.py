"""I3D on RGB frames (arXiv:1705.07750), whose Kinetics-400 logits FVD compares.

Modules have the names of the published files.

Letters: N clips, T H W frames, height and width, C channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models.judges.layers import ConvUnit, max_pool
from goku_jax.typing import UserError

ORIGIN = (
  "i3d_pretrained_400.pt, which the repositories github.com/songweige/TATS and "
  "VideoGPT's load for FVD"
)
SIDE = 224  # pixels
CLASSES = 400
MIN_FRAMES = 10  # of published figures; fewer than nine leave no position
# Widths: one position | into, out of 3x3x3 | of another | after the pool.
BLOCKS = {
  "Mixed_3b": (64, 96, 128, 16, 32, 32),
  "Mixed_3c": (128, 128, 192, 32, 96, 64),
  "Mixed_4b": (192, 96, 208, 16, 48, 64),
  "Mixed_4c": (160, 112, 224, 24, 64, 64),
  "Mixed_4d": (128, 128, 256, 24, 64, 64),
  "Mixed_4e": (112, 144, 288, 32, 64, 64),
  "Mixed_4f": (256, 160, 320, 32, 128, 128),
  "Mixed_5b": (256, 160, 320, 32, 128, 128),
  "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLS = {  # before these blocks: what is pooled, by strides of as many
  "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
  "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
  "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


class I3D(nn.Module):
  """Logits, averaged over time, of clips in [-1, 1].

  `bn_eps` is that of the weights: it moves logits by a percent.
  """

  bn_eps: float

  @nn.compact
  def __call__(
    self, clips_NTHWC: Float[Array, "N T 224 224 3"]
  ) -> Float[Array, "N 400"]:
    if clips_NTHWC.shape[1] < MIN_FRAMES:
      raise UserError(
        f"clips of {clips_NTHWC.shape[1]} frames: I3D takes {MIN_FRAMES} or "
        "more"
      )
    unit = functools.partial(ConvUnit, bn_eps=self.bn_eps)
    x = clips_NTHWC
    x = unit(64, (7, 7, 7), stride=2, name="Conv3d_1a_7x7")(x)
    x = max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
    x = unit(64, (1, 1, 1), name="Conv3d_2b_1x1")(x)
    x = unit(192, (3, 3, 3), name="Conv3d_2c_3x3")(x)
    for name, widths in BLOCKS.items():
      if name in POOLS:
        x = max_pool(x, *POOLS[name], "SAME")
      x = Block(widths, self.bn_eps, name=name)(x)
    x = nn.avg_pool(x, (2, 7, 7))
    logits = nn.Dense(CLASSES, precision="highest", name="logits")(x)
    return logits.mean((1, 2, 3))


class Block(nn.Module):
  """Four branches side by side."""

  widths: tuple[int, ...]
  bn_eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "N T H W _"]) -> Float[Array, "N T H W _"]:
    unit = functools.partial(ConvUnit, bn_eps=self.bn_eps)
    one, cube = (1, 1, 1), (3, 3, 3)
    w = self.widths
    b0 = unit(w[0], one, name="b0")(x)
    b1 = unit(w[2], cube, name="b1b")(unit(w[1], one, name="b1a")(x))
    b2 = unit(w[4], cube, name="b2b")(unit(w[3], one, name="b2a")(x))
    pooled = max_pool(x, cube, padding="SAME")
    b3 = unit(w[5], one, name="b3b")(pooled)
    return jnp.concatenate([b0, b1, b2, b3], -1)


@functools.cache
def abstract_params():
  """Shapes and dtypes of the parameters."""
  clips = jax.ShapeDtypeStruct((1, MIN_FRAMES, SIDE, SIDE, 3), jnp.float32)
  init = I3D(bn_eps=0.0).init
  return jax.eval_shape(init, jax.random.key(0), clips)["params"]
