"""Attention kernels by name.

Each is `(q, k, v, q_ids, k_ids) -> out, log-sum-exp`, as
`attention.attend`, the reference; all are equal to it, or refuse to run.
"""

import functools

import jax

from goku_jax.models import attention
from goku_jax.typing import UserError

NAMES = ("auto", "chunked", "splash")


def choose(kernel: str, *, block: int, platform: str | None = None):
  """A kernel by its name.

  Args:
    kernel: "chunked" runs anywhere, "splash" on TPUs; "auto" is what is fast.
    block: queries, and keys, that splash takes at once, a multiple of 128:
      large ones are fast, small ones skip more of packs of short segments.
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

  if block < splash.LANES or block % splash.LANES:
    raise UserError(
      f"attention.block={block}: set a multiple of {splash.LANES}, as 1024"
    )
  return functools.partial(splash.attend, block=block)
