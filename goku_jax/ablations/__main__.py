"""Trains arms that differ in one thing, and tells which came nearer to data.

  python -m goku_jax.ablations --config=configs/ablations.py --workdir=DIR

Goku's comparisons (Table 2, Figures 5a and 5b, section 2.2) on moving digits,
by several seeds. DIR receives records.jsonl, a judgement a line, and made of it
report.md and pictures/; killed and started again, it goes on with what has no
record. What is told is what came out.
"""

import time

from goku_jax import job

# What records would not be comparable without.
SAME = ("steps", "checkpoints", "num_images", "num_clips", "num_frames")
SAME += ("calls", "sides", "vae", "latents", "images", "clips")


def main(config, workdir):
  """Returns how much was found, and how long it took."""
  started = time.perf_counter()
  if config.get("stage") != "ablations":
    raise job.UserError(
      f"config.stage={config.get('stage')!r} compares nothing: use"
      " --config=configs/ablations.py"
    )
  job.check_workdir(workdir, config, same=SAME)
  from goku_jax.ablations import report, study  # jax is slow to import

  job.save_config(workdir, config)
  records = study.run(config, workdir)
  report.write(records, workdir)
  seconds = time.perf_counter() - started
  return {"records": len(records), "seconds": seconds}


if __name__ == "__main__":
  job.run(main, config="required")
