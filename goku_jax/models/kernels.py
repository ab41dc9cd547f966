"""Attention kernels by name.

Each is `(q, k, v, q_ids, k_ids) -> out, log-sum-exp`, as
`attention.attend`, the reference; all are equal to it, or refuse to run.
"""

import functools
import importlib.util

import jax

from goku_jax.models import attention
from goku_jax.typing import UserError

NAMES = ("auto", "chunked", "splash", "tokamax")


def choose(
  kernel: str, *, block: int, key_block: int, platform: str | None = None
):
  """A kernel by its name.

  Args:
    kernel: "chunked" runs anywhere, "splash" on TPUs, "tokamax" on Hopper
      GPUs; "auto" is splash on a TPU and else chunked, until a GPU has been
      seen to run tokamax's.
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
  if kernel == "tokamax":
    _check_gpu(platform)
    from goku_jax.models import tokamax_attention

    return tokamax_attention.attend
  if kernel == "chunked" or platform != "tpu":
    return attention.attend
  from goku_jax.models import splash  # Pallas, not before it is needed

  for name, size in (("block", block), ("key_block", key_block)):
    if size < splash.LANES or size % splash.LANES:
      raise UserError(
        f"attention.{name}={size}: set a multiple of {splash.LANES}, as 1024"
      )
  return functools.partial(splash.attend, block=block, key_block=key_block)


def _check_gpu(platform):
  """Refuses tokamax's kernel where it does not run."""
  device = jax.local_devices()[0]
  kind = device.device_kind if platform == "gpu" else platform
  if platform != "gpu" or getattr(device, "compute_capability", "") != "9.0":
    raise UserError(
      f"attention.kernel=tokamax runs on Hopper GPUs, and this is a {kind}: set"
      " auto or chunked"
    )
  if importlib.util.find_spec("tokamax") is None:
    raise UserError(
      "attention.kernel=tokamax needs the extra gpu: bash launch/install.sh gpu"
    )
