"""Does once what training would do at each step: encodes clips, cuts films.

  python -m goku_jax.prepare --config=configs/clips.py:stage=prepare \
    --config.data.path=DATA --config.vae.workdir=VAE --workdir=LATENTS

DATA is a folder of videos and pictures with captions beside them, a manifest
(.csv, .jsonl, .parquet), WebDataset tars, ArrayRecord shards, or tfds:NAME
(docs/data.md). VAE is the workdir of a trained autoencoder, or a folder of
weights. LATENTS receives ArrayRecord shards of posterior means and
log-variances, a manifest with digests and the statistics that bring latents to
unit variance, what was left out and why, and the autoencoder itself (`vae/`). A
folder that is whole already is left as it is; after a kill, the same command
goes on from the whole shards.

Several tasks share the work: each writes shards of its own, and the last one
makes the folder whole. --task=K --num_tasks=N say which this is; by default a
SLURM array does. With --num_tasks=N alone it is the array's id, or the
completion index of a JobSet, so that one task can be run again.

  python -m goku_jax.prepare --workdir=LATENTS --inspect

prints what shards hold and draws a contact sheet of them.

  python -m goku_jax.prepare --config=configs/vae.py:shots \
    --config.data.path=FILMS --workdir=SHOTS

SHOTS receives a video for each shot of the films, scaled down to the size that
training reads and fast to read from anywhere.
"""

import os
import time

from absl import flags

from goku_jax import job

flags.DEFINE_integer("task", None, "which of the tasks this is", lower_bound=0)
flags.DEFINE_integer("num_tasks", None, "how many there are", lower_bound=1)
flags.DEFINE_bool("inspect", False, "look at --workdir instead of writing")

MOVES = ("vae.workdir", "text.path")
FREE = ("data.decoder",)
SAME = ("seed", "data", "vae", "text", "encode", "items_per_shard")


def main(workdir, inspect, config=None, task=None, num_tasks=None):
  """Returns counts, and statistics of the latents."""
  started = time.perf_counter()
  if inspect:
    from goku_jax.prepare import inspection

    return inspection.inspect(workdir)
  if not config:
    raise job.UserError("missing --config=FILE.py; --help explains")
  if config.get("stage") == "shots":
    from goku_jax.prepare import shots

    job.check_workdir(workdir, config, same=("data",))
    result = shots.prepare(config, workdir)
    job.save_config(workdir, config)
    return {**result, "seconds_taken": time.perf_counter() - started}
  if config.get("stage") != "prepare":
    raise job.UserError(
      f"config.stage={config.get('stage')!r} prepares nothing: use"
      " --config=configs/clips.py:stage=prepare"
    )
  job.check_workdir(workdir, config, same=SAME, moves=MOVES, free=FREE)
  from goku_jax.prepare import latents  # jax is slow to import

  task, num_tasks = read_task(task, num_tasks, os.environ)
  result = latents.prepare(config, workdir, task, num_tasks)
  return {**result, "seconds_taken": time.perf_counter() - started}


def read_task(task, num_tasks, environment) -> tuple[int, int]:
  """Which task this is and of how many, by flags or the scheduler.

  Raises:
    UserError: one of the two is known, and not the other.
  """
  number = lambda name: int(environment[f"SLURM_ARRAY_TASK_{name}"])
  is_array = "SLURM_ARRAY_TASK_ID" in environment
  if task is None and num_tasks is None and is_array:
    count = number("COUNT")
    if number("MAX") - number("MIN") + 1 != count:
      raise job.UserError(
        "the SLURM array has gaps: give it as 0-N, or set --num_tasks"
      )
    return number("ID") - number("MIN"), count
  if task is None and num_tasks is not None:
    found = environment.get("JOB_COMPLETION_INDEX")
    task = number("ID") if is_array else found
  if task is None and num_tasks is None:
    if "JOB_COMPLETION_INDEX" in environment:
      raise job.UserError(
        "JOB_COMPLETION_INDEX is set, but not how many there are: add"
        " --num_tasks=N"
      )
    return 0, 1
  if task is None or num_tasks is None:
    raise job.UserError("set --task and --num_tasks, not one of them alone")
  return int(task), num_tasks


if __name__ == "__main__":
  job.run(main, config="optional")
