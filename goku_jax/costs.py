"""FLOPs of the flow transformer by formula, and the peaks of chips.

Forward, for a segment of s tokens with T text tokens of width c, width d,
MLP ratio r, in each layer; a multiply-add counts two:

  s (8 d^2 + 4 d^2 + 4 r d^2)  self-attention; query and output of
                               cross-attention; MLP
  + 4 s^2 d                    scores and weighted sum, over its own tokens
  + 4 s T d + 4 T c d          cross-attention; its keys and values
  + 12 d^2                     adaLN

and once 2 s d for each number in a patch, in and out, and 4 d^2 for the final
adaLN. Padding and recomputation count zero; training is three forwards. The
compiler's own count is unfit: it misses kernels and counts a scan once.
"""

import time
from collections.abc import Sequence
from functools import cache

# Dense bf16 FLOP/s of one JAX device (a TPU7x chip is two), the vendors'
# figures. The first prefix of `device_kind` that fits counts.
PEAKS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
  "TPU7x": 1153.5e12,
  "TPU v7": 1153.5e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}


def flow_flops(
  segments: Sequence[int],
  texts: Sequence[int] = (),
  *,
  width: int,
  depth: int,
  patch_width: int,
  mlp_ratio: int | float = 4,
  text_width: int = 0,
) -> float:
  """FLOPs of one forward of the flow transformer on packed segments.

  Args:
    segments: number of tokens of each segment.
    texts: number of text tokens that each attends to; as many as segments
      where there is cross-attention.
    width: of the model.
    depth: layers.
    patch_width: numbers in a token.
    mlp_ratio: MLP width over `width`.
    text_width: 0 where there is no cross-attention.
  """
  segments = [s for s in segments if s]  # what is not there costs nothing
  tokens = sum(segments)
  d2 = width**2
  layer = tokens * (8 + 4 * mlp_ratio) * d2
  layer += 4 * sum(s**2 for s in segments) * width
  layer += 12 * d2 * len(segments)
  if text_width:
    layer += tokens * 4 * d2
    layer += sum(
      4 * s * t * width + 4 * t * text_width * width
      for s, t in zip(segments, texts, strict=True)
    )
  ends = 4 * tokens * patch_width * width + 4 * d2 * len(segments)
  return float(depth * layer + ends)


def training_flops(*args, **sizes) -> float:
  """FLOPs of forward and backward: three times `flow_flops`."""
  return 3 * flow_flops(*args, **sizes)


def peak_flops(devices=None) -> float:
  """FLOP/s of all devices together, measured where the chip is not known."""
  import jax  # not before a job needs it

  devices = jax.devices() if devices is None else devices
  kind = devices[0].device_kind
  for prefix, peak in PEAKS.items():
    if kind.startswith(prefix):
      return peak * len(devices)
  # Pretend devices share the cores of their process, so it counts once.
  processes = len({device.process_index for device in devices})
  return measured_peak() * processes


@cache
def measured_peak(size: int = 1024, rounds: int = 5) -> float:
  """FLOP/s of the fastest of a few float32 matrix products, here and now."""
  import jax
  import jax.numpy as jnp

  device = jax.local_devices()[0]
  a = jax.device_put(jnp.ones((size, size), jnp.float32), device)
  product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
  product(a).block_until_ready()
  seconds = []
  for _ in range(rounds):
    start = time.perf_counter()
    product(a).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def mfu(flops: float, seconds: float, peak: float) -> float:
  """Share of the peak that useful FLOPs reached, in [0, 1]."""
  return flops / (seconds * peak)
