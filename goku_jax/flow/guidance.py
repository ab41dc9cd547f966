"""Classifier-free guidance, arXiv:2207.12598."""

from jaxtyping import Array, Float


def guide(
  conditional: Float[Array, "*shape"],
  unconditional: Float[Array, "*shape"],
  scale: float | Float[Array, ""],
) -> Float[Array, "*shape"]:
  """The conditional velocity pushed away from the unconditional one.

  `scale=1` is the conditional field itself, `scale=0` the unconditional one.
  """
  return unconditional + scale * (conditional - unconditional)
