"""Captions to videos with the model of a run."""

import math

import numpy as np

from goku_jax.data import packing, schema
from goku_jax.flow import noise, times
from goku_jax.sample import codec as codecs
from goku_jax.sample import given as encode_given
from goku_jax.sample import requests
from goku_jax.sample.restore import Restored, process_of
from goku_jax.sample.sampler import sample_latents
from goku_jax.typing import UserError


def draw(
  run: Restored,
  captions: list[str],
  *,
  num_frames: int,
  labels: list[int] | None = None,
  size: tuple = (None, None),
  indices: list[int] | None = None,
  given: list[dict] | None = None,
  progress=None,
  **settings,
) -> list[np.ndarray]:
  """Videos uint8 `[T, H, W, 3]` of captions; `size` as trained by default.

  `indices` are the samples whose noise they get; their places by default.
  `given` are frames of each that are known, uint8 `[n, H, W, 3]` by place, as
  `given.read_frames` has them.
  `settings` are what else `check` takes: num_steps, guidance_scale, seed,
  solver, shift and shift_tokens.

  Raises:
    UserError: as `check`, or what is drawn is not finite.
  """
  shape = check(
    run, captions, num_frames=num_frames, labels=labels, size=size, **settings
  )
  solvers = process_of(run.config).solvers
  solve = solvers[settings.pop("solver", None) or next(iter(solvers))]
  tokens = math.prod(shape[:3]) // math.prod(run.model.config.patch_size)
  shift_tokens = settings.pop("shift_tokens", 0)
  shift = times.shift_of(settings.pop("shift", 1.0), shift_tokens, tokens)
  told = {}  # what several captions share is encoded once
  for frames in given or ():
    if id(frames) not in told:
      told[id(frames)] = _encode_given(run, shape, frames)
  latents = sample_latents(
    run.model,
    run.params,
    captions,
    [shape] * len(captions),
    capacity=packing.Capacity(**run.config.data.pack),
    max_text=run.config.data.max_text,
    embed=run.text and run.text.encode,
    labels=labels,
    indices=indices,
    conditions=given and [told[id(frames)] for frames in given],
    ranks=run.ranks,
    progress=progress,
    solve=solve,
    shift=shift,
    **settings,
  )
  for place, latent in zip(
    indices or range(len(latents)), latents, strict=True
  ):
    if not np.isfinite(latent).all():
      raise UserError(
        f"sample {place} has numbers that are not finite: the model of step"
        f" {run.step} is broken, take an earlier one"
      )
  return codecs.decode_together(run.codec, latents)


def _encode_given(run, shape, frames):
  if not run.model.config.conditioned:
    raise UserError(
      "this model was not trained on given frames: leave them out, or begin one"
      " with model.conditioned=true at its weights (init_from)"
    )
  height, width = (
    n * stride
    for n, stride in zip(shape[1:3], run.codec.stride[1:], strict=True)
  )
  how = run.config.sample.fit
  fitted = {
    place: encode_given.fit(video, height, width, how)
    for place, video in frames.items()
  }
  return encode_given.encode(run.codec, shape, fitted)


def check(
  run: Restored,
  captions: list[str],
  *,
  labels: list[int] | None,
  num_frames: int,
  num_steps: int,
  guidance_scale: float,
  seed: int,
  solver: str | None = None,
  shift: float = 1.0,
  shift_tokens: int = 0,
  size: tuple = (None, None),
) -> tuple[int, int, int, int]:
  """The shape of the latents that `draw` draws, which needs no parameters.

  Raises:
    UserError: a size, a setting, a caption or a class label that the model
      does not take.
  """
  if not captions:
    raise UserError("there is nothing to draw: give a prompt or a class label")
  requests.check_condition(run.model, captions, labels)
  schema.check_frames(num_frames)
  for caption in captions:
    count = run.text.count if run.text else requests.count_pieces
    requests.check_length(caption, run.config.data.max_text, count)
  known = process_of(run.config).solvers
  if solver is not None and solver not in known:
    raise UserError(
      f"solver={solver!r}: this model was trained for {' or '.join(known)}"
    )
  if num_steps < 1:
    raise UserError(f"num_steps={num_steps}: set 1 or more")
  if not math.isfinite(guidance_scale):
    raise UserError(f"guidance_scale={guidance_scale}: set a finite number")
  times.check_shift(shift, shift_tokens)
  noise.check_seed(seed)
  height, width = (
    trained if given is None else given
    for given, trained in zip(size, run.config.sample.size, strict=True)
  )
  for name, pixels, stride, patch in zip(
    ("height", "width"),
    (height, width),
    run.codec.stride[1:],
    run.model.config.patch_size[1:],
    strict=True,
  ):
    if pixels < 1 or pixels % (stride * patch):
      raise UserError(f"{name}={pixels} is not a multiple of {stride * patch}")
  return codecs.latent_shape(run.codec, num_frames, height, width)
