"""Classifier-free guidance, arXiv:2207.12598."""


def guide(conditional, unconditional, scale):
  """The conditional velocity pushed away from the unconditional one.

  `scale=1` is the conditional field itself, `scale=0` the unconditional one.
  """
  return unconditional + scale * (conditional - unconditional)
