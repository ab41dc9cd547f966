"""The two forms of the 3-D convolution (`models/conv.py`) on this device.

Letters: B clips, T H W frames, height, width, C channels.
"""

import time

import jax
import jax.numpy as jnp

from goku_jax.models import conv

FORMS = {"planes": conv.sum_of_planes, "volume": conv.volume}
# Frames given, height and width, channels, stride.
CASES = (
  (11, 64, 64, 1),
  (11, 32, 128, 1),
  (11, 16, 256, 1),
  (11, 64, 64, 2),
)


def compare(rounds: int, dtype: str, cases=CASES) -> dict:
  """Milliseconds of each form, forward and with gradients, and their ratio.

  `ratio` is the volume's time over that of the planes.
  """
  return {
    f"{T}x{side}x{side}_channels_{C}_stride_{stride}": _compare(
      rounds, (1, T, side, side, C), stride, dtype
    )
    for T, side, C, stride in cases
  }


def _compare(rounds, shape, stride, dtype):
  C = shape[-1]
  x = jax.random.normal(jax.random.key(0), shape, dtype)
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, C, C), dtype)
  fns = {}
  for name, form in FORMS.items():
    forward = lambda x, kernel, form=form: form(x, kernel, stride)
    loss = lambda *args, forward=forward: jnp.square(forward(*args)).sum()
    fns[name, "forward"] = jax.jit(forward)
    fns[name, "gradients"] = jax.jit(jax.grad(loss, (0, 1)))
  seconds = {key: [] for key in fns}
  for i in range(rounds + 1):  # the first compiles
    for key, fn in fns.items():
      start = time.perf_counter()
      jax.block_until_ready(fn(x, kernel))
      if i:
        seconds[key].append(time.perf_counter() - start)
  best = {key: 1e3 * min(found) for key, found in seconds.items()}
  result = {f"{name}_{what}_ms": ms for (name, what), ms in best.items()}
  for what in ("forward", "gradients"):
    ratio = best["volume", what] / best["planes", what]
    result[f"{what}_ratio"] = ratio
  return result
