"""A small classifier of glyphs.

Grey crops in [0, 1], about 18x18 pixels. Everything after the first layer
works at half the resolution or less: seconds of training on two cores.

Letters: N crops, H W height, width, K classes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class GlyphProbe(nn.Module):
  """Scores of each class."""

  num_classes: int = 10
  width: int = 32

  @nn.compact
  def __call__(self, crops_NHW: Float[Array, "N H W"]) -> Float[Array, "N K"]:
    x = crops_NHW[..., None].astype(jnp.float32)
    x = nn.gelu(nn.Conv(self.width, (3, 3), strides=2, name="conv_0")(x))
    x = nn.gelu(nn.Conv(2 * self.width, (3, 3), name="conv_1")(x))
    x = nn.gelu(nn.Conv(2 * self.width, (3, 3), strides=2, name="conv_2")(x))
    x = x.reshape(len(x), -1)
    x = nn.tanh(nn.Dense(2 * self.width, name="features")(x))
    return nn.Dense(self.num_classes, name="head")(x)
