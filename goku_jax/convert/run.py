"""The autoencoder of a run without the run, with the scale of its latents.

Letters: T H W frames, height, width of a clip.
"""

from collections.abc import Iterator

import jax
import numpy as np

from goku_jax import job
from goku_jax.data import digits, shards, transforms, video_io
from goku_jax.models import vae_stream
from goku_jax.sample.restore import restore_vae
from goku_jax.typing import UserError

LATENT_FRAMES = 5  # of a clip, in long films one clip after the other


def read(
  source,
  data: str | None = None,
  num_samples: int | None = None,
  step: int | None = None,
) -> tuple[dict, dict]:
  """Averaged parameters and config of a run, its latents measured on data.

  Args:
    source: the workdir of a run with stage=vae.
    data: a folder of videos and images, or "digits": those of the run.
    num_samples: how many of them; all of a folder, 256 digits if not given.
    step: of the checkpoint; the newest whole one if not given.
  """
  if not data:
    raise UserError("--format=run needs --data=FOLDER or --data=digits")
  model, config, params, step = restore_vae(source, step=step)
  if data == "digits":
    clips = _digits(job.load_config(source, "vae"), num_samples or 256)
  else:
    clips = _videos(data, num_samples, model.config.stride)
  moments = measure(model, params, clips)
  stats = {"latent_mean": moments.mean, "latent_std": moments.std}
  stats = {name: array.tolist() for name, array in stats.items()}
  return params, {**config, **stats, "step": step}


def measure(model, params, clips) -> shards.Moments:
  """Mean and deviation by channel of the latents of clips `[T, H, W, 3]`."""
  params, moments = jax.device_put(params), shards.Moments()
  for clip in clips:
    moments.add(*(x[0] for x in vae_stream.encode(model, params, clip[None])))
  return moments


def _digits(config, num_samples) -> Iterator[np.ndarray]:
  sizes = config.data.digits.to_dict() | {"num_samples": num_samples}
  raw = digits.Digits(seed=config.seed, **sizes)
  return (raw[i]["video"] for i in range(len(raw)))


def _videos(folder, num_samples, stride) -> Iterator[np.ndarray]:
  """Clips of the files in the order of their names, as eval reads them."""
  t, *sides = stride
  for path in video_io.list_videos(folder)[:num_samples]:
    for video in video_io.read_clips(path, (LATENT_FRAMES - 1) * t + 1):
      video = transforms.check_pixels(video, path)
      kept = transforms.trim_frames(video, t, "trim", path)
      if len(kept) < len(video):
        print(f"{path}: {len(kept)} of {len(video)} frames", flush=True)
      yield transforms.pad_sides(kept, sides)
