"""Attention kernels by name.

Each is `(q, k, v, q_ids, k_ids) -> out, log-sum-exp`, as
`attention.attend`, the reference; all are equal to it, or refuse to run.
"""

import functools

import jax

from goku_jax.models import attention
from goku_jax.typing import UserError

NAMES = ("auto", "chunked", "splash", "cudnn")
HOPPER = 9.0  # compute capability of the first GPUs that cuDNN packs for


def choose(
  kernel: str,
  *,
  block: int,
  key_block: int,
  segments: int,
  platform: str | None = None,
):
  """A kernel by its name.

  Args:
    kernel: "chunked" runs anywhere, "splash" on TPUs, "cudnn" on GPUs from
      Hopper on in 16 bits; "auto" is the device's own, and else chunked.
    block: queries that splash takes at once, a multiple of 128: large ones are
      fast, small ones skip more of packs of short segments.
    key_block: keys that it takes at once.
    segments: the most that a pack holds; a single one is at its start.
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
  kind = _gpu_without_packs(platform)
  if kernel == "cudnn" and kind:
    raise UserError(
      f"attention.kernel=cudnn runs on NVIDIA's GPUs from Hopper on, and this"
      f" is a {kind}: set auto or chunked"
    )
  if kernel == "cudnn" or (kernel == "auto" and not kind):
    from goku_jax.models import cudnn_attention

    packed = functools.partial(cudnn_attention.attend, segments=segments)
    return packed if kernel == "cudnn" else functools.partial(_by_type, packed)
  if kernel == "chunked" or platform != "tpu":
    return attention.attend
  from goku_jax.models import splash  # Pallas, not before it is needed

  for name, size in (("block", block), ("key_block", key_block)):
    if size < splash.LANES or size % splash.LANES:
      raise UserError(
        f"attention.{name}={size}: set a multiple of {splash.LANES}, as 1024"
      )
  return functools.partial(splash.attend, block=block, key_block=key_block)


def _gpu_without_packs(platform):
  """What kind of device this is, unless cuDNN's kernels run on it."""
  if platform != "gpu":
    return platform
  device = jax.local_devices(backend="gpu")[0]
  capability = getattr(device, "compute_capability", "0")  # not of AMD's
  return None if float(capability) >= HOPPER else device.device_kind


def _by_type(packed, q_BLNK, *others):
  """cuDNN's kernel where it takes the arrays, else the reference."""
  from goku_jax.models import cudnn_attention

  is_short = q_BLNK.dtype in cudnn_attention.TYPES
  return (packed if is_short else attention.attend)(q_BLNK, *others)
