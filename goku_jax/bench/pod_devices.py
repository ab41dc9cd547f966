"""What each device of a pod does by itself: products, memory and bits.

What devices measure is gathered, and every process judges all of it: none waits
for another's verdict, and all end alike.

Letters: R devices, n numbers of each; N a side of a matrix.
"""

import functools
import hashlib
import socket
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from goku_jax.bench import machine

SLOW = 1.3  # times the median's seconds: named


class Check(NamedTuple):
  """A line of the report."""

  name: str
  passed: bool
  figure: str


class Sizes(NamedTuple):
  """Of what is measured.

  One call takes a chip 10 ms or more, since its start alone takes a host about
  0.1; what is copied is more than fits beside the cores.
  """

  side: int  # of matrices in bfloat16
  products: int  # in a row
  numbers: int  # float32, that are read and written
  copies: int
  gathered: int  # float32, that an all-gather leaves on a device


SHORT = Sizes(4096, 64, 1 << 26, 32, 1 << 24)
LONG = Sizes(8192, 64, 1 << 28, 64, 1 << 28)
PRETEND = Sizes(128, 2, 1 << 16, 2, 1 << 12)


def choose_sizes(short: bool) -> Sizes:
  """Of a chip, or of CPUs, whose figures say nothing of one."""
  if jax.default_backend() == "cpu":
    return PRETEND
  return SHORT if short else LONG


def choose_slow() -> float:
  """Pretend devices share cores: how fast one is depends on the others."""
  return np.inf if jax.default_backend() == "cpu" else SLOW


def check(sizes: Sizes) -> list[Check]:
  """All devices by what this process's do, one after the other."""
  rows = [measure(make_input(d, sizes.side), sizes) for d in local_devices()]
  return judge(*gather(rows), sizes, choose_slow())


def local_devices() -> list:
  """Those of this process, in the order of its rows."""
  return sorted(jax.local_devices(), key=lambda device: device.id)


def make_input(device, side: int):
  """The same numbers on any device; products of them stay of one size."""
  with jax.default_device(device):
    x_NN = jax.random.normal(jax.random.key(0), (side, side)) * side**-0.5
    return jax.device_put(x_NN.astype(jnp.bfloat16), device)


def measure(x_NN, sizes: Sizes) -> tuple[float, float, int]:
  """Seconds of products and of copies where `x_NN` lies; a digest of bits."""
  out_NN, products = machine.fastest(_products, x_NN, sizes.products)
  x = jnp.zeros(sizes.numbers, jnp.float32, device=x_NN.device)
  _, copies = machine.fastest(_copies, x, sizes.copies)
  digest = hashlib.sha256(np.asarray(out_NN).tobytes()).digest()
  return products, copies, int.from_bytes(digest[:6])  # exact as a double


@functools.partial(jax.jit, static_argnums=1)
def _products(x_NN, count):
  return jax.lax.fori_loop(0, count, lambda _, y_NN: x_NN @ y_NN, x_NN)


@functools.partial(jax.jit, static_argnums=1)
def _copies(x, count):
  # Without the barrier several additions might become one.
  body = lambda _, x: jax.lax.optimization_barrier(x + 1)
  return jax.lax.fori_loop(0, count, body, x)


def gather(rows) -> tuple[np.ndarray, list[str]]:
  """The rows of all processes' devices, [R, n], and whose each is.

  Args:
    rows: n numbers for each of `local_devices`, or for the first alone.
  """
  row = [("host", "S64"), ("device", "i4"), ("values", "f8", len(rows[0]))]
  host = socket.gethostname().encode()
  mine = np.array(
    [
      (host, device.id, tuple(values))
      for device, values in zip(local_devices(), rows, strict=False)
    ],
    row,
  )
  # As bytes: JAX would cut doubles to float32.
  whole = multihost_utils.process_allgather(mine.view(np.uint8))
  table = np.ascontiguousarray(whole).reshape(-1).view(row)
  who = [
    f"device {device} of {host.decode()}"
    for host, device in zip(table["host"], table["device"], strict=True)
  ]
  return table["values"], who


def judge(
  table, who: list[str], sizes: Sizes, slow: float = SLOW
) -> list[Check]:
  """What the devices' table says.

  Args:
    table: of each device the seconds of the products, those of the copies, and
      the digest, [R, 3].
    who: the devices.
    sizes: of what was measured.
    slow: times the median's seconds that is too slow.
  """
  products, copies, digests = table.T
  flops = 2 * sizes.side**3 * sizes.products
  size = 2 * 4 * sizes.numbers * sizes.copies
  return [
    judge_speed("matrix products", products, who, flops, "TFLOP/s", slow),
    judge_speed("memory", copies, who, size, "GB/s", slow),
    _judge_bits(digests, who),
  ]


def judge_speed(name, seconds, who, work, unit, slow, wrong=None) -> Check:
  """A line: work by the median's seconds, and who is slow or wrong."""
  median = np.median(seconds)
  rate = work / median / {"TFLOP/s": 1e12, "GB/s": 1e9}[unit]
  late = seconds > slow * median
  told = [f"{rate:.4g} {unit}"]
  told += [
    f"{who[i]} takes {seconds[i] / median:.2f} times the median"
    for i in np.flatnonzero(late)
  ]
  wrong = np.zeros(len(who), bool) if wrong is None else wrong
  told += [f"{who[i]} has wrong numbers" for i in np.flatnonzero(wrong)]
  return Check(name, not (late.any() or wrong.any()), "; ".join(told))


def _judge_bits(digests, who):
  values, places = np.unique(digests, return_inverse=True)
  counts = np.bincount(places)
  odd = places != counts.argmax()
  if 2 * counts.max() <= len(who):  # as of two devices: either may be wrong
    odd[:] = len(values) > 1
  told = [f"{len(values)} results of {len(who)} devices"]
  told += [f"{who[i]} differs" for i in np.flatnonzero(odd)]
  return Check("equal bits", not odd.any(), "; ".join(told))
