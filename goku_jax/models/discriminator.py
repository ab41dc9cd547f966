"""Says, patch by patch, whether a clip is real: the autoencoder's opponent.

PatchGAN (arXiv:1611.07004) with convolutions over time too; an image is a clip
of one frame through the same weights.

Letters: B clips, T H W frames, height, width, C D channels in and out; t h w
of patches.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from goku_jax.models.conv import conv3d
from goku_jax.models.vae_layers import GroupNorm

KERNEL = (3, 4, 4)  # frames, height, width
POWER_STEPS = 8
GROUPS = 8


class Discriminator(nn.Module):
  """Scores of patches, high for real ones."""

  width: int = 64  # of the first layer; doubled up to eight times as many
  num_layers: int = 3  # each halves frames, height and width
  spectral_norm: bool = False  # of weights, in place of norms of features

  @nn.compact
  def __call__(
    self, video_BTHWC: Float[Array, "B T H W C"]
  ) -> Float[Array, "B t h w"]:
    """Takes pixels in [-1, 1]."""
    scale_fn = _over_spectral_norm if self.spectral_norm else lambda w: w
    x = video_BTHWC
    for i in range(self.num_layers + 1):
      width = self.width * 2 ** min(i, 3)
      stride = 2 if i < self.num_layers else 1
      x = _Conv(width, stride, scale_fn, name=f"conv_{i}")(x)
      if i and not self.spectral_norm:
        x = GroupNorm(GROUPS, per_frame=False, name=f"norm_{i}")(x)
      x = nn.leaky_relu(x, 0.2)
    out = _Kernel((x.shape[-1], 1), name="out")()
    return (x @ scale_fn(out))[..., 0]


class _Conv(nn.Module):
  """A strided convolution, zeros beyond all sides."""

  channels: int
  stride: int
  scale_fn: Callable  # kernel -> kernel

  @nn.compact
  def __call__(self, x_BTHWC):
    shape = (*KERNEL, x_BTHWC.shape[-1], self.channels)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:])
    x_BTHWC = jnp.pad(x_BTHWC, ((0, 0), (1, 1), *((0, 0),) * 3))
    # An even kernel: sides stay as they are, or are halved.
    sides = ((1, 1 if self.stride == 2 else 2),) * 2
    return conv3d(x_BTHWC, self.scale_fn(kernel), self.stride, sides) + bias


class _Kernel(nn.Module):
  """A matrix alone: scores need no bias to be told apart."""

  shape: tuple[int, int]

  @nn.compact
  def __call__(self):
    return self.param("kernel", nn.initializers.lecun_normal(), self.shape)


def _over_spectral_norm(kernel):
  """The kernel over its largest singular value (arXiv:1802.05957).

  Found by power steps from a fixed vector at each call, where others carry
  their last vector along: parameters alone then say what the network does.
  """
  matrix = kernel.reshape(-1, kernel.shape[-1])
  unit = lambda x: x / (jnp.linalg.norm(x) + 1e-12)
  fixed = jax.lax.stop_gradient(matrix)
  v = unit(jax.random.normal(jax.random.key(0), matrix.shape[1:]))
  for _ in range(POWER_STEPS):
    u = unit(fixed @ v)
    v = unit(u @ fixed)
  return kernel / (u @ matrix @ v)
