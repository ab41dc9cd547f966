"""FLOPs of the flow transformer by formula, and what chips can do.

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

import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from goku_jax.typing import UserError

BLOCK = 512  # queries, and keys, that attention kernels take at once


class Chip(NamedTuple):
  """One JAX device, by its vendor's figures; None is unknown.

  A TPU v4 or v5p is one device of two cores, a TPU7x is two devices. Links of
  a torus go both ways along each of its axes.
  """

  flops: float  # dense bf16 FLOP/s
  hbm: float | None = None  # bytes
  hbm_speed: float | None = None  # bytes/s
  torus_axes: int | None = None  # of its network; 0 is a switch
  link_speed: float | None = None  # bytes/s one way, of one link
  cores: int = 1
  flops_per_cycle: int | None = None  # of one core

  @property
  def network_speed(self) -> float | None:
    """Bytes/s one way over all links together."""
    if self.link_speed is None or self.torus_axes is None:
      return None
    return self.link_speed * max(2 * self.torus_axes, 1)

  @property
  def clock(self) -> float | None:
    """Cycles/s of the matrix units at the peak."""
    if self.flops_per_cycle is None:
      return None
    return self.flops / (self.cores * self.flops_per_cycle)


GIB = 2**30
# By the first prefix of `device_kind` that fits. Sources: Cloud TPU's pages
# and the scaling book; NVIDIA's data sheets; FLOPs a cycle as libtpu has them.
# A link's speed is the published total of both ways (v5e 400, v6e 800, NVLink
# 900 GB/s) over the links, halved; v5p's (4800 Gb/s by its page) is that of the
# scaling book, below it.
_V5E = Chip(197e12, 16 * GIB, 0.82e12, 2, 50e9, 1, 131_072)
_TPU7X = Chip(  # half a chip of 2307 TFLOP/s, 192 GiB and 7.4 TB/s
  1153.5e12, 96 * GIB, 3.7e12, 3, None, 1, 524_288
)
CHIPS = {
  "TPU v4": Chip(275e12, 32 * GIB, torus_axes=3, cores=2),
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": Chip(459e12, 95 * GIB, 2.77e12, 3, 90e9, 2, 131_072),
  "TPU v6": Chip(918e12, 32 * GIB, 1.64e12, 2, 100e9, 1, 524_288),
  "TPU7x": _TPU7X,
  "TPU v7": _TPU7X,
  "NVIDIA A100": Chip(312e12),
  "NVIDIA H100 PCIe": Chip(756e12),
  "NVIDIA H100 NVL": Chip(835e12),
  "NVIDIA H100": Chip(989e12, 80e9, 3.35e12, 0, 450e9),
  "NVIDIA H200": Chip(989e12, 141e9, 4.8e12, 0, 450e9),
}


def find_chip(kind: str) -> Chip | None:
  """The chip of a `device_kind`; None where it is not known."""
  fitting = (chip for name, chip in CHIPS.items() if kind.startswith(name))
  return next(fitting, None)


def sizes_of(config) -> dict:
  """Sizes of a `TransformerConfig`, as the formulas here take them."""
  names = ("width", "depth", "mlp_ratio", "patch_width", "text_width")
  return {name: getattr(config, name) for name in names}


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


def attention_blocks(
  segments: Sequence[int], *, block_q: int, block_k: int
) -> int:
  """Pairs of query and key blocks that a kernel runs on one pack.

  It skips a pair that no segment meets on both sides. Segments lie in a row
  from the pack's first token on.

  Args:
    segments: number of tokens of each segment, in the order of the pack.
    block_q: queries of a block.
    block_k: keys of a block.
  """
  sizes = np.array([s for s in segments if s], np.int64)
  ends = np.cumsum(sizes)
  total = int(sizes.sum())
  # The segments of a query block are neighbours, and so are all their keys.
  begin = np.arange(0, total, block_q)
  last_query = np.minimum(begin + block_q, total) - 1
  first, last = np.searchsorted(ends, [begin, last_query], side="right")
  first_key = ends[first] - sizes[first]
  pairs = (ends[last] - 1) // block_k - first_key // block_k + 1
  return int(pairs.sum())


def pack_flops(
  segments: Sequence[int],
  texts: Sequence[int] = (),
  *,
  width: int,
  depth: int,
  block: int,
  key_block: int | None = None,
  **sizes,
) -> float:
  """FLOPs that one forward of a pack executes: its attention by whole blocks.

  Args:
    segments: number of tokens of each segment, in the order of the pack.
    texts: number of text tokens of each.
    width: of the model.
    depth: layers.
    block: queries of a block of the attention kernel.
    key_block: keys of it; as many by default.
    **sizes: further ones of `flow_flops`.
  """
  needed = sum(s**2 for s in segments)
  key_block = key_block or block
  blocks = attention_blocks(segments, block_q=block, block_k=key_block)
  more = 4 * width * depth * (blocks * block * key_block - needed)
  return more + flow_flops(segments, texts, width=width, depth=depth, **sizes)


def calibrated(path: str) -> Callable[..., float]:
  """Seconds of a pack as a function of its segments, by a table of times.

  The table is JSON, `{"block": 512, "rows": [[tokens, blocks, seconds], ...]}`,
  blocks as `attention_blocks` counts them; `bench --suite=packing
  --calibrate=FILE` writes one. Fits seconds = a + b tokens + c blocks, none of
  them negative, by least squares.

  Raises:
    UserError: the file is not such a table.
  """
  try:
    with open(path) as file:
      table = json.load(file)
    block = int(table["block"])
    tokens, blocks, seconds = np.array(table["rows"], float).T
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} is no table {{"block": 512, "rows": [[tokens, blocks, seconds],'
      f" ...]}}: {error}"
    ) from error
  columns = np.stack([np.ones_like(tokens), tokens, blocks], axis=1)
  used, fit = [0, 1, 2], np.zeros(3)
  while used:
    found = np.linalg.lstsq(columns[:, used], seconds, rcond=None)[0]
    if found.min() >= 0:
      # Every host must order packs alike, and their last bits may differ.
      fit[used] = [float(f"{x:.5g}") for x in found]
      break
    del used[int(found.argmin())]
  a, b, c = fit.tolist()
  count = lambda segments: attention_blocks(
    segments, block_q=block, block_k=block
  )
  return lambda segments, texts=(): a + b * sum(segments) + c * count(segments)


def peak_flops(devices=None) -> float:
  """FLOP/s of all devices together, measured where the chip is not known."""
  import jax  # not before a job needs it

  devices = jax.devices() if devices is None else devices
  if chip := find_chip(devices[0].device_kind):
    return chip.flops * len(devices)
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
