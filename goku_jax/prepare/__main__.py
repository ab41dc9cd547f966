"""Encodes clips and captions once, so that training reads latents.

  python -m goku_jax.prepare --config=configs/digits.py:stage=prepare \
    --config.vae.workdir=VAE --workdir=LATENTS

VAE is the workdir of a trained autoencoder. LATENTS receives ArrayRecord
shards of posterior means and log-variances, a manifest with digests and the
statistics that bring latents to unit variance, and the autoencoder itself
(`vae/`). A folder that is whole already is left as it is; after a kill, the
same command goes on from the whole shards.
"""

import time

from goku_jax import job


def main(config, workdir):
  """Returns counts and statistics of the latents."""
  started = time.perf_counter()
  if config.get("stage") != "prepare":
    raise job.UserError(
      f"config.stage={config.get('stage')!r} prepares nothing: use"
      " --config=configs/digits.py:stage=prepare"
    )
  same = ("seed", "data", "vae", "records_per_shard")
  job.check_workdir(workdir, config, same=same)
  from goku_jax.prepare import latents  # jax is slow to import

  result = latents.prepare(config, workdir)
  return {**result, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
  job.run(main, config="required")
