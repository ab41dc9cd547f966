"""What a layer exchanges on eight TPUs, by strategy, as JSON.

python -m tests.golden.collectives --write    # after a change that is meant

Needs the extra `tpu`: the compiler's choices are of its version.
"""

import functools
import json
import pathlib
import sys

from goku_jax import config
from goku_jax.plan import plan, program, step, topology
from tests import runs

PATH = pathlib.Path(__file__).with_suffix(".json")
WIDTH, TOKENS = 512, 1280  # of a pack; no other width is as large, or half
STRATEGIES = {
  "fsdp": dict(mesh=dict(fsdp=8)),
  "hybrid": dict(mesh=dict(replica=2, fsdp=4)),
  "tensor": dict(mesh=dict(fsdp=4, tensor=2)),
  "ulysses": dict(mesh=dict(fsdp=4, sequence=2)),
  "ring": dict(mesh=dict(fsdp=4, sequence=2), attention=dict(ring=2)),
  "ulysses x ring": dict(mesh=dict(fsdp=2, sequence=4), attention=dict(ring=2)),
}


@functools.cache
def compiled(name):
  """Text and memory of a small wide step on eight TPUs, and its state."""
  found = config.read_config(f"{runs.ROOT}/configs/joint.py:debug")
  with found.unlocked():
    found.model.update(
      width=WIDTH, num_heads=8, dtype="bfloat16", remat="keep_attention"
    )
    found.data.pack.tokens, found.data.num_packs = TOKENS, 8
    for section, settings in STRATEGIES[name].items():
      found[section].update(settings)
  lowered = step.lower_step(found, topology.find_devices("v5e:2x4"))
  done = lowered.lowered.compile()
  return done.as_text(), program.memory(done), lowered.state


def table(name) -> dict[str, dict[str, int]]:
  """Arrays and bytes of each kind that a device receives in a layer."""
  exchanged = program.collectives(compiled(name)[0])
  return plan.count_kinds([x for x in exchanged if x.loops])


if __name__ == "__main__":
  if sys.argv[1:] != ["--write"]:
    sys.exit(__doc__)
  topology.set_environment()
  found = {name: table(name) for name in STRATEGIES}
  PATH.write_text(json.dumps(found, indent=1) + "\n")
