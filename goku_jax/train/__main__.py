"""Trains the model of a config: the flow transformer or the autoencoder.

  python -m goku_jax.train --config=configs/digits.py --workdir=runs/digits

Started again with the same workdir, it goes on from the newest checkpoint.
The workdir receives config.json, checkpoints/, metrics.jsonl, tensorboard/,
shown/ (pictures and videos at fixed prompts and seeds) and first_batch.png; a
run on latents keeps their autoencoder (vae/) and manifest (latents.json), so
they may move, but it goes on with no others.
"""

import time

from goku_jax import job


def main(config, workdir):
  """Returns the metrics of the last step."""
  started = time.perf_counter()
  if config.get("stage") not in ("flow", "vae"):
    raise job.UserError(
      f"config.stage={config.get('stage')!r} is not trained: use flow or vae"
    )
  from goku_jax.parallel import multihost  # jax is slow to import

  multihost.initialize()
  job.check_workdir(
    workdir,
    config,
    same=(
      *("stage", "seed", "model", "data", "loss", "optim"),
      "checkpoint.folder",
    ),
    moves=("data.path",),
    free=("data.threads", "data.decoder", "model.remat"),
  )
  if config.optim.schedule == "cosine":
    job.check_workdir(
      workdir,
      config,
      same=("total_steps",),
      why="the cosine ends there, only optim.schedule=constant may be extended",
    )
  from goku_jax.train import loop

  metrics = loop.train(config, workdir, started)
  return {**metrics, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
  job.run(main, config="required")
