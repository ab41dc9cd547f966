"""The rectified-flow path: straight lines from noise to data.

    x_t = t data + (1 - t) noise,      t in [0, 1]
    velocity = dx_t / dt = data - noise

Source: Goku, arXiv:2502.04896, section 2.3: t = 0 is noise, t = 1 is data.
Diffusion papers use the opposite letters, so this code uses words.
"""

from jaxtyping import Array, Float


def interpolate(
  data: Float[Array, "*shape"],
  noise: Float[Array, "*shape"],
  t: Float[Array, "..."],
) -> Float[Array, "*shape"]:
  """The point at time `t` (broadcast against `data`) of each line."""
  return t * data + (1 - t) * noise


def velocity(
  data: Float[Array, "*shape"], noise: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """The constant velocity of the line: what the network predicts."""
  return data - noise
