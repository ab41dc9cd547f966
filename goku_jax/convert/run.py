"""The autoencoder of a run without the run, with the scale of its latents.

Letters: T H W frames, height, width of a clip.
"""

from collections.abc import Iterator

import jax
import numpy as np

from goku_jax import job
from goku_jax.data import digits, sources, transforms, video_io
from goku_jax.models import vae_stream
from goku_jax.sample.restore import restore_vae
from goku_jax.typing import UserError

LATENT_FRAMES = 4  # encoded at once: memory stays that of one chunk


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


def measure(model, params, clips) -> sources.Moments:
  """Mean and deviation by channel of the latents of clips `[T, H, W, 3]`."""
  params, moments = jax.device_put(params), sources.Moments()
  chunk = LATENT_FRAMES * model.config.stride[0]
  for clip in clips:
    moments.add(
      *(x[0] for x in vae_stream.encode(model, params, clip[None], chunk=chunk))
    )
  return moments


def _digits(config, num_samples) -> Iterator[np.ndarray]:
  sizes = config.data.digits.to_dict() | {"num_samples": num_samples}
  raw = digits.Digits(seed=config.seed, **sizes)
  return (raw[i]["video"] for i in range(len(raw)))


def _videos(folder, num_samples, stride) -> Iterator[np.ndarray]:
  """Files in the order of their names, cut to what the stride divides."""
  t, h, w = stride
  for path in video_io.list_videos(folder)[:num_samples]:
    video, _ = video_io.read_video(path)
    video = transforms.trim_frames(
      transforms.check_pixels(video, path), t, "trim", path
    )
    H, W = video.shape[1:3]
    if not (H // h and W // w):
      raise UserError(
        f"{path} is {W} wide and {H} high, less than one latent of {w} and {h}"
      )
    yield video[:, : H // h * h, : W // w * w]
