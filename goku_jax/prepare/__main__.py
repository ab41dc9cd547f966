"""Does once what training would do at each step: encodes clips, cuts films.

  python -m goku_jax.prepare --config=configs/digits.py:stage=prepare \
    --config.vae.workdir=VAE --workdir=LATENTS

VAE is the workdir of a trained autoencoder. LATENTS receives ArrayRecord
shards of posterior means and log-variances, a manifest with digests and the
statistics that bring latents to unit variance, and the autoencoder itself
(`vae/`). A folder that is whole already is left as it is; after a kill, the
same command goes on from the whole shards.

  python -m goku_jax.prepare --config=configs/vae.py:shots \
    --config.data.path=FILMS --workdir=SHOTS

SHOTS receives a video for each shot of the films, scaled down to the size that
training reads and fast to read from anywhere.
"""

import time

from goku_jax import job


def main(config, workdir):
  """Returns counts, and statistics of the latents."""
  started = time.perf_counter()
  if config.get("stage") == "shots":
    from goku_jax.prepare import shots

    job.check_workdir(workdir, config, same=("data",))
    result = shots.prepare(config, workdir)
    job.save_config(workdir, config)
    return {**result, "seconds": time.perf_counter() - started}
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
