"""Attention kernels by name.

Each is `(q, k, v, q_ids, k_ids) -> out, log-sum-exp`, as
`attention.attend`, the reference; all are equal to it, or refuse to run.
"""

import functools

import jax

from goku_jax.models import attention
from goku_jax.typing import UserError

NAMES = ("auto", "chunked", "splash")


def choose(
  kernel: str, *, block: int, key_block: int, platform: str | None = None
):
  """A kernel by its name.

  Args:
    kernel: "chunked" runs anywhere, "splash" on TPUs; "auto" is what is fast.
    block: queries that splash takes at once, a multiple of 128: large ones are
      fast, small ones skip more of packs of short segments.
    key_block: keys that it takes at once.
    platform: what it will run on; JAX's default.

  Raises:
    UserError: there is no such kernel, it does not run there, or a block that
      it does not take.
  """
  platform = platform or jax.default_backend()
  if kernel not in NAMES:
    known = ", ".join(NAMES)
    raise UserError(f"attention.kernel={kernel!r} is not one of {known}")
  if kernel == "splash" and platform != "tpu":
    raise UserError(
      f"attention.kernel=splash runs on TPUs, and this is a {platform}: set"
      " auto or chunked"
    )
  if kernel == "chunked" or platform != "tpu":
    return attention.attend
  from goku_jax.models import splash  # Pallas, not before it is needed

  for name, size in (("block", block), ("key_block", key_block)):
    if size < splash.LANES or size % splash.LANES:
      raise UserError(
        f"attention.{name}={size}: set a multiple of {splash.LANES}, as 1024"
      )
  return functools.partial(splash.attend, block=block, key_block=key_block)
