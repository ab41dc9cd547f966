"""Randomness by identity: a draw depends on the sample, not on its place.

Every key folds in what the draw is for, the sample's global index and its
visit (how often it was seen before), and a token's noise folds in its place on
the sample's own grid. Packing, batch and devices therefore change nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from goku_jax.typing import UserError

# What a draw is for. Sampling has noise of its own: by its place in a list and
# a seed of 0 it would else start from what training paired with other data.
# 1 was the time's.
NOISE, DROP, POSTERIOR, START, FRAMES, FRESH = 0, 2, 3, 4, 5, 6
SEEDS = 2**32  # a larger seed gives the key of its remainder, silently


def check_seed(seed: int, name: str = "seed"):
  """Refuses seeds that are not what they seem."""
  if not 0 <= seed < SEEDS:
    raise UserError(f"{name}={seed}: set 0 or more, below 2^32")


def sample_keys(
  rng: Key[Array, ""],
  purpose: int,
  index: Int[Array, "*n"],
  visit: Int[Array, "*n"],
) -> Key[Array, "*n"]:
  """One key for each sample ."""
  rng = jax.random.fold_in(rng, purpose)

  def key(index, visit):
    return jax.random.fold_in(jax.random.fold_in(rng, index), visit)

  for _ in range(index.ndim):
    key = jax.vmap(key)
  return key(index, visit)


def grid_normal(
  key_BG: Key[Array, "B G"],
  segment_ids_BL: Int[Array, "B L"],
  positions_BL3: Int[Array, "B L 3"],
  width: int,
) -> Float[Array, "B L width"]:
  """Standard normal numbers for each token, from its segment's key.

  A position is one number, t * 2^20 + h * 2^10 + w: grids reach 4,096 frames
  of 1,024 x 1,024 tokens before two tokens share their noise.
  """
  place_BL = positions_BL3.astype(jnp.uint32) @ jnp.array(
    [1 << 20, 1 << 10, 1], jnp.uint32
  )

  def of_pack(key_G, ids_L, place_L):
    keys_L = key_G[jnp.maximum(ids_L - 1, 0)]
    keys_L = jax.vmap(jax.random.fold_in)(keys_L, place_L)
    return jax.vmap(lambda key: jax.random.normal(key, (width,)))(keys_L)

  return jax.vmap(of_pack)(key_BG, segment_ids_BL, place_BL)
