"""Draws images and videos from text with the flow model of a run.

  python -m goku_jax.sample --workdir=DIR --prompt="the digit five moves left" \
    --num_frames=17 --num_steps=25 --guidance_scale=3 --seed=0 --out=x.mp4

One frame is an image (--out=x.png). --prompts=FILE takes one prompt a line
and --out a folder. A model with classes takes --class_label=N beside the
prompt, or in its place where it reads no text. The same seed gives the same
bytes; prompt i of a file has noise of its own. Files carry prompt, seed and
settings as metadata.
"""

import pathlib
import time

from absl import flags

from goku_jax import job

flags.DEFINE_string("prompt", None, "what to show")
flags.DEFINE_string("prompts", None, "file of prompts, one a line")
flags.DEFINE_integer("class_label", None, "for a model that has classes")
flags.DEFINE_string("out", None, "file (mp4, gif, png, npz), or folder")
flags.DEFINE_integer("num_frames", 17, "4k+1; 1 is an image")
flags.DEFINE_integer("height", None, "pixels; as in training by default")
flags.DEFINE_integer("width", None, "pixels; as in training by default")
flags.DEFINE_integer("num_steps", 25, "from noise to data", lower_bound=1)
flags.DEFINE_float("guidance_scale", 3.0, "1: none; higher: closer to text")
flags.DEFINE_string("solver", "euler", "euler or heun")
flags.DEFINE_float("shift", 3.0, "above 1: more steps near noise")
flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0)
flags.DEFINE_integer("fps", 8, "frames per second", lower_bound=1)
flags.DEFINE_integer("upscale", 1, "pixels a side for each", lower_bound=1)
flags.DEFINE_integer("step", None, "checkpoint; the newest whole by default")
flags.DEFINE_string("weights", "ema", "ema or params")


def main(
  workdir,
  out,
  num_frames,
  num_steps,
  guidance_scale,
  solver,
  shift,
  seed,
  fps,
  upscale,
  weights,
  prompt=None,
  prompts=None,
  class_label=None,
  height=None,
  width=None,
  step=None,
):
  """Returns the files written."""
  started = time.perf_counter()
  from goku_jax.data import video_io
  from goku_jax.sample import draw, requests, restore

  captions = requests.read_prompts(prompt, prompts, class_label)
  files = requests.name_files(out, captions, num_frames, many=bool(prompts))
  run = restore.restore(workdir, step=step, weights=weights)
  settings = dict(
    num_frames=num_frames,
    num_steps=num_steps,
    guidance_scale=guidance_scale,
    solver=solver,
    shift=shift,
    seed=seed,
  )
  labels = None if class_label is None else [class_label] * len(captions)
  with job.Progress(len(captions), 0, "sample") as progress:
    videos = draw.draw(
      run,
      captions,
      labels=labels,
      size=(height, width),
      progress=progress.update,
      **settings,
    )
  for file, caption, video in zip(files, captions, videos, strict=True):
    video_io.write_video(
      file,
      video,
      fps=fps,
      upscale=upscale,
      metadata={
        "prompt": caption,
        "class_label": class_label,
        "step": run.step,
        **settings,
      },
    )
  return {
    "files": [str(pathlib.Path(file)) for file in files],
    "step": run.step,
    "seconds": time.perf_counter() - started,
  }


if __name__ == "__main__":
  job.run(main)
