"""C3D (arXiv:1412.0767) fine-tuned on UCF-101, by which videos are scored.

As TGANv2 computes it (arXiv:1811.09245), whose weights later work shares: 16
frames in blue, green, red, a mean clip taken off, eleven layers.

Letters: N clips, T H W frames, height and width, C channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models import conv
from goku_jax.models.judges.layers import max_pool
from goku_jax.typing import UserError

MEAN = "mean2.npz"
ORIGIN = (
  "conv3d_deepnetA_ucf.npz, which the README of"
  f" github.com/pfnet-research/tgan2 links to, {MEAN} beside it"
)
SIDE, FRAMES = 112, 16
CLASSES = 101
# Convolutions, in the order of their layers; a pool stands before these.
WIDTHS = {
  "conv1a": 64,
  "conv2a": 128,
  "conv3a": 256,
  "conv3b": 256,
  "conv4a": 512,
  "conv4b": 512,
  "conv5a": 512,
  "conv5b": 512,
}
POOLS = {"conv2a": 1, "conv3a": 2, "conv4a": 2, "conv5a": 2}  # frames of each
HIDDEN = 4096


class C3D(nn.Module):
  """Logits of clips of pixels from 0 to 255, red, green, blue."""

  @nn.compact
  def __call__(
    self, clips_NTHWC: Float[Array, "N T 112 112 3"]
  ) -> Float[Array, "N 101"]:
    if clips_NTHWC.shape[1] != FRAMES:
      raise UserError(
        f"clips of {clips_NTHWC.shape[1]} frames: C3D takes {FRAMES}"
      )
    zeros = nn.initializers.zeros_init()
    x = clips_NTHWC[..., ::-1]
    x -= self.param("mean", zeros, (FRAMES, SIDE, SIDE, 3))
    for name, width in WIDTHS.items():
      if name in POOLS:
        x = _pool(x, POOLS[name])
      x = nn.relu(Convolution(width, name=name)(x))
    x = _pool(x, 2)
    x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # channels first, as theirs
    dense = functools.partial(nn.Dense, precision="highest")
    for name in ("fc6", "fc7"):
      x = nn.relu(dense(HIDDEN, name=name)(x))
    return dense(CLASSES, name="fc8")(x)


class Convolution(nn.Module):
  """Of 3 x 3 x 3 positions, zeros beyond the ends."""

  width: int

  @nn.compact
  def __call__(self, x: Float[Array, "N T H W C"]) -> Float[Array, "N T H W D"]:
    shape = (3, 3, 3, x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:])
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    return conv.conv3d(x, kernel, precision="highest") + bias


def _pool(x, frames):
  window = (frames, 2, 2)
  return max_pool(x, window, window, "SAME")  # an odd row counts, as theirs


@functools.cache
def abstract_params():
  """Shapes and dtypes of the parameters."""
  clips = jax.ShapeDtypeStruct((1, FRAMES, SIDE, SIDE, 3), jnp.float32)
  return jax.eval_shape(C3D().init, jax.random.key(0), clips)["params"]
