"""The flow-matching loss of packed samples.

The squared error of the velocity is averaged within each sample, then over
samples, so a picture of 256 tokens weighs as much as a long clip (after
PixelFlow, arXiv:2504.07963). The second average is left to the
training step, which alone knows how many samples there are on all devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mean_square_by_segment(
  error_BLP: Float[Array, "B L P"],
  segment_ids_BL: Int[Array, "B L"],
  num_segments: int,
) -> Float[Array, "B G"]:
  """Mean squared error of each segment; 0 for segments without tokens."""
  one_hot_BLG = jax.nn.one_hot(segment_ids_BL - 1, num_segments)
  square_BL = jnp.mean(jnp.square(error_BLP.astype(jnp.float32)), -1)
  total_BG = jnp.einsum(
    "BL,BLG->BG", square_BL, one_hot_BLG, precision="highest"
  )
  return total_BG / jnp.maximum(one_hot_BLG.sum(1), 1)
