"""Norms, embeddings and the MLP that the transformer is made of.

Letters: B packs, G segments of a pack, L tokens, D width. Parameters are
float32, matrix products run in `dtype`, norms and modulation in float32.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from goku_jax.typing import UserError

DTYPES = ("float32", "bfloat16")  # of matrix products

xavier = nn.initializers.xavier_uniform()
normal_02 = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros_init()


def read_dtype(name: str):
  """The dtype of matrix products that a config names.

  Raises:
    UserError: another one; float16 would need a scaled loss.
  """
  if name not in DTYPES:
    raise UserError(f"model.dtype={name!r} is not one of {', '.join(DTYPES)}")
  return jnp.dtype(name)


class RMSNorm(nn.Module):
  """Root-mean-square norm with a learned scale, arXiv:1910.07467."""

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
    x32 = x.astype(jnp.float32)
    power = jnp.mean(jnp.square(x32), -1, keepdims=True)
    return (x32 * jnp.reciprocal(jnp.sqrt(power + self.epsilon))) * scale


def layer_norm(
  x: Float[Array, "... D"], epsilon: float = 1e-6
) -> Float[Array, "... D"]:
  """Layer norm without parameters, in float32 (section 2.2, released code)."""
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, -1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
  return centred * jnp.reciprocal(jnp.sqrt(variance + epsilon))


def modulate(x_BLD, shift_BLD, scale_BLD):
  """The adaptive part of adaLN: x (1 + scale) + shift, in float32."""
  return x_BLD * (1 + scale_BLD.astype(jnp.float32)) + shift_BLD


def timestep_features(
  t: Float[Array, "..."], width: int = 256
) -> Float[Array, "... width"]:
  """Sinusoids of `1000 t`, cosines first, for flow times in [0, 1].

  Frequencies fall geometrically from 1 to 1e-4 (both ends included), as in
  the same author's PixelFlow (arXiv:2504.07963).
  """
  half = width // 2
  frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / (half - 1))
  angle = 1000.0 * t[..., None].astype(jnp.float32) * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class TimestepEmbedding(nn.Module):
  """A flow time as a vector of the model's width."""

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, t_BG: Float[Array, "B G"]) -> Float[Array, "B G D"]:
    dense = lambda name: nn.Dense(
      self.width, kernel_init=normal_02, dtype=self.dtype, name=name
    )
    return dense("down")(nn.silu(dense("up")(timestep_features(t_BG))))


class Condition(nn.Module):
  """Given frames joined to noised latents along channels, and brought back.

  One layer over channels (section 2.5), which at first passes the latents
  through and ignores the rest, so that training begins at text-to-video.

  Letters: L tokens, P patch volume times C channels, K volume times C + 1.
  """

  channels: int  # C
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens_BLP: Float[Array, "B L P"],
    condition_BLK: Float[Array, "B L K"],
  ) -> Float[Array, "B L P"]:
    cells = tokens_BLP.shape[-1] // self.channels
    split = lambda x: x.reshape(*x.shape[:2], cells, -1)
    joined = jnp.concatenate([split(tokens_BLP), split(condition_BLK)], -1)
    return nn.Dense(
      self.channels,
      kernel_init=lambda rng, shape, dtype: jnp.eye(*shape, dtype=dtype),
      dtype=self.dtype,
      name="mix",
    )(joined).reshape(tokens_BLP.shape)


class Mlp(nn.Module):
  """Two layers with the tanh approximation of GELU between them."""

  width: int  # inner
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    h = nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="up")(x)
    h = checkpoint_name(h, "mlp")  # for remat
    return nn.Dense(
      x.shape[-1], kernel_init=xavier, dtype=self.dtype, name="down"
    )(nn.gelu(h, approximate=True))
