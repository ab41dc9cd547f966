"""The memory of a long run does not grow; tests/data has that of decoders."""

import pytest

from tests import runs

MIB = 2**20
# Trains the digits with saves and evaluations; tells its memory as it goes.
PROGRAM = """
import sys
from goku_jax.train import __main__ as job, loop
from tests import runs

workdir, total = sys.argv[1], int(sys.argv[2])
config = runs.read_config(
  "flow", total_steps=total, save_every_steps=20, show_every_steps=100,
)
make_task = loop.TASKS["flow"]

def make_telling_task(*args):
  task = make_task(*args)
  def batches(first, *more):
    for step, batch in enumerate(task.batches(first, *more), first):
      if step % 20 == 10:
        pages = int(open("/proc/self/statm").read().split()[1])
        print("rss", step, pages * 4096, flush=True)
      yield batch
  return task._replace(batches=batches)

loop.TASKS["flow"] = make_telling_task
job.main(config, workdir)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_trainer_does_not_grow(tmp_path):
  with runs.start_program(PROGRAM, tmp_path, 1200) as process:
    out, err = process.communicate(timeout=1500)
  assert process.returncode == 0, err.decode()
  told = [line.split() for line in out.decode().splitlines()]
  sizes = {int(t[1]): int(t[2]) for t in told if t[:1] == ["rss"]}
  assert len(sizes) == 60
  # Allocators fill up in the first third.
  middle = max(size for step, size in sizes.items() if 400 <= step < 800)
  late = max(size for step, size in sizes.items() if step >= 800)
  print(f"{middle / MIB:.0f} MiB up to step 800, {late / MIB:.0f} up to 1200")
  assert late < middle + 64 * MIB
