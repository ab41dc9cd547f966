"""Encodes a raw source with the autoencoder of a run, or of others."""

import itertools
import pathlib

import jax
import numpy as np

from goku_jax import job, weights
from goku_jax.data import digits, sources
from goku_jax.models import vae_stream
from goku_jax.sample.restore import restore_vae
from goku_jax.typing import UserError

CHUNK = 64  # clips encoded at once
STATISTICS = ("latent_mean", "latent_std")


def prepare(config, workdir) -> dict:
  """Writes the latents of a config's source; returns what the folder holds."""
  folder = pathlib.Path(workdir)
  if (folder / sources.MANIFEST).exists():
    print(f"{folder} is whole already", flush=True)
    return _summary(sources.Latents(folder))
  if not config.vae.workdir:
    raise UserError(
      "set --config.vae.workdir to a run of stage=vae or a folder of weights"
    )
  model, about, params, step = restore_vae(**config.vae)
  # What came with the weights stays, so that their latents are everybody's.
  given = {k: about[k] for k in STATISTICS if k in about}
  raw = digits.Digits(seed=config.seed, **config.data.digits)
  # Refuses what the stride does not divide.
  model.latent_shape((1, raw.num_frames, raw.canvas, raw.canvas, 3))
  writer = sources.ShardWriter(
    folder,
    records_per_shard=config.records_per_shard,
    about={
      "vae": {"workdir": config.vae.workdir, "step": step},
      "num_classes": raw.num_classes,
      **given,
    },
  )
  job.save_config(folder, config)
  if len(writer):
    print(f"goes on from record {len(writer)} of {len(raw)}", flush=True)
  with job.Progress(len(raw), len(writer), "prepare") as progress:
    writer.write(encode(model, params, raw, progress, len(writer)))
  weights.save(folder / "vae", params, {**writer.statistics(), **about})
  writer.finish()  # the manifest comes last: it makes the folder whole
  return _summary(sources.Latents(folder))


def encode(model, params, raw, progress, first: int = 0):
  """Records of the samples from `first` on, those of one shape together.

  Samples are encoded beside the same ones wherever it starts, so that their
  latents have the same bits.
  """
  params = jax.device_put(params)
  window = 2 * CHUNK
  for start in range(first - first % window, len(raw), window):
    end = min(start + window, len(raw))
    samples = [raw[i] for i in range(start, end)]
    moments = [None] * len(samples)
    shape_of = lambda i, samples=samples: samples[i]["video"].shape
    places = sorted(range(len(samples)), key=shape_of)
    for _, same in itertools.groupby(places, shape_of):
      same = list(same)
      videos = [samples[i]["video"] for i in same]
      encoded = _encode(model, params, videos)
      for i, mean, logvar in zip(same, *encoded, strict=True):
        moments[i] = mean, logvar
    left_out = max(first - start, 0)  # encoded before, in the same window
    pairs = zip(samples, moments, strict=True)
    for sample, (mean, logvar) in itertools.islice(pairs, left_out, None):
      numbers = {k: v for k, v in sample.items() if k != "video"}
      yield {"mean": mean, "logvar": logvar, **numbers}
    progress.update(end)


def _encode(model, params, videos):
  """Means and log-variances of videos of one shape."""
  # Padded, so that each shape compiles once.
  padded = videos + videos[-1:] * (-len(videos) % CHUNK)
  chunks = [
    vae_stream.encode(model, params, np.stack(padded[i : i + CHUNK]))
    for i in range(0, len(padded), CHUNK)
  ]
  return (
    np.concatenate(part)[: len(videos)] for part in zip(*chunks, strict=True)
  )


def _summary(source) -> dict:
  manifest = source.manifest
  return {
    "records": manifest["records"],
    "shards": len(manifest["shards"]),
    "latent_mean": manifest["latent_mean"],
    "latent_std": manifest["latent_std"],
  }
