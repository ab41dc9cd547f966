"""Rotary positions on the (time, height, width) grid of tokens.

Pairs are interleaved (2i, 2i+1) and turn by `position * theta^(-2i / width)`;
each grid axis owns a slice of the head. Positions are absolute integers, so a
longer clip or a larger picture extrapolates (section 2.2; the split is
CogVideoX's, arXiv:2408.06072, whose heads are as wide as Goku's).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def axis_widths(head_width: int) -> tuple[int, int, int]:
  """Channels of a head that time, height and width own.

  3/8 of the head for each side, rounded down to an even number, and the rest
  for time: 64 gives (16, 24, 24), 128 gives (32, 48, 48), 72 (20, 26, 26).
  """
  if head_width % 2 or head_width < 16:
    raise ValueError(f"rope needs an even head width >= 16, got {head_width}")
  side = 2 * (3 * head_width // 16)
  return head_width - 2 * side, side, side


def rope_tables(
  positions_BL3: Int[Array, "B L 3"],
  head_width: int,
  theta: float = 10_000.0,
) -> tuple[Float[Array, "B L K"], Float[Array, "B L K"]]:
  """Cosines and sines of every channel's angle, each frequency twice."""
  angles = []
  for axis, width in enumerate(axis_widths(head_width)):
    frequency = theta ** (-jnp.arange(0, width, 2) / width)
    angle = positions_BL3[..., axis, None].astype(jnp.float32) * frequency
    angles.append(jnp.repeat(angle, 2, axis=-1))
  angle_BLK = jnp.concatenate(angles, -1)
  return jnp.cos(angle_BLK), jnp.sin(angle_BLK)


def sinusoids(
  positions_BL3: Int[Array, "B L 3"], width: int, theta: float = 10_000.0
) -> Float[Array, "B L width"]:
  """Cosines and sines of the same angles, to be added to tokens.

  What rotary positions took the place of (section 2.2); as
  arXiv:1706.03762, section 3.5, on three axes.
  """
  tables = rope_tables(positions_BL3, width, theta)
  return jnp.concatenate([table[..., ::2] for table in tables], -1)


def rotate(
  x_BLNK: Float[Array, "B L N K"],
  cos_BLK: Float[Array, "B L K"],
  sin_BLK: Float[Array, "B L K"],
) -> Float[Array, "B L N K"]:
  """Each pair of channels turned by its token's angle, in float32.

  Pairs change places by a product with a signed permutation, which is exact in
  any dtype: to take neighbours apart a TPU would rewrite the whole array
  several times.
  """
  pair = jnp.array([[0, 1], [-1, 0]], x_BLNK.dtype)  # (a, b) becomes (-b, a)
  swap_KK = jnp.kron(jnp.eye(x_BLNK.shape[-1] // 2, dtype=pair.dtype), pair)
  turned = jnp.einsum("BLNK,KJ->BLNJ", x_BLNK, swap_KK, precision="highest")
  x32, turned = x_BLNK.astype(jnp.float32), turned.astype(jnp.float32)
  return x32 * cos_BLK[:, :, None] + turned * sin_BLK[:, :, None]
