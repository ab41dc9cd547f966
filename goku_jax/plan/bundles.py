"""How many instructions a TPU issues for a block of attention, with no TPU.

libtpu writes the schedule of every kernel that it compiles: a bundle is what
issues in a cycle, so a block's bundles are the fewest cycles that it can take.
It reads its flags once, so a process of its own compiles:

  python -m goku_jax.plan.bundles TOPOLOGY HEAD_WIDTH BLOCK KEY_BLOCK
"""

import functools
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from goku_jax.plan import topology

PATTERN = "*splash*schedule-analysis_final_bundles.txt"
MODULE = "goku_jax.plan.bundles"
HEADS, BLOCKS = 2, 8  # of what is compiled; neither is in the figures


@functools.cache
def count(
  name: str, head_width: int, block: int, key_block: int
) -> dict | None:
  """Bundles of a block of queries and keys: `forward`, `dq` and `dkv`.

  None where libtpu is missing, or does not compile such a block.
  """
  if not topology.has_compiler():
    return None
  with tempfile.TemporaryDirectory() as folder:
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    command = [
      sys.executable,
      "-m",
      MODULE,
      name,
      str(head_width),
      str(block),
      str(key_block),
    ]
    done = subprocess.run(
      command,
      env=os.environ | topology.ENVIRONMENT | {"LIBTPU_INIT_ARGS": flags},
      capture_output=True,
      check=False,
    )
    return read(pathlib.Path(folder)) if done.returncode == 0 else None


def read(folder: pathlib.Path) -> dict | None:
  """Bundles of the three kernels, of what libtpu wrote; None if any lacks."""
  found = {}
  for path in folder.glob(PATTERN):
    name = "dkv" if "dkv" in path.name else "dq" if "dq" in path.name else None
    total = re.search(r"total scheduled bundles:\s+(\d+)", path.read_text())
    found[name or "forward"] = int(total[1])
  return found if len(found) == 3 else None


def _compile(name, head_width, block, key_block):
  import jax
  import jax.numpy as jnp
  from jax.sharding import SingleDeviceSharding

  from goku_jax.models import splash

  device = topology.find_devices(name)[0]
  abstract = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
    shape, dtype, sharding=SingleDeviceSharding(device)
  )
  length = BLOCKS * max(block, key_block)
  array = abstract(1, length, HEADS, head_width)
  ids = abstract(1, length, dtype=jnp.int32)
  loss = lambda q, k, v, ids: (
    splash.attend(q, k, v, ids, ids, block=block, key_block=key_block)[0]
    .astype(jnp.float32)
    .sum()
  )
  jax.jit(jax.grad(loss, (0, 1, 2))).lower(array, array, array, ids).compile()


if __name__ == "__main__":
  topology.set_environment()
  _compile(sys.argv[1], *map(int, sys.argv[2:]))
