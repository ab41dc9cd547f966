"""Draws images and videos from text with the flow model of a run.

  python -m goku_jax.sample --workdir=DIR --prompt="the digit five moves left" \
    --out=x.mp4

One frame is an image (--num_frames=1 --out=x.png). --prompts=FILE takes one
prompt a line and --out a folder. A model with classes takes --class_label=N
beside the prompt, or in its place where it reads no text. --motion_score=4.2
asks for more or less motion of a model whose captions told it. What is not
given is as the run's own config has it (`sample`); solver and fps it does not
hold. --image=FILE, and perhaps --last_image=FILE, or --clip=FILE, whose first
--clip_frames are continued, give frames to a model that was trained on such
(`model.conditioned`). The same seed gives the same bytes; prompt i of a file
has noise of its own. Files carry prompt, seed and settings as metadata.
"""

import pathlib
import time

from absl import flags

from goku_jax import job

OF_RUN = "; the run's config.sample by default"

flags.DEFINE_string("prompt", None, "what to show")
flags.DEFINE_string("prompts", None, "file of prompts, one a line")
flags.DEFINE_integer("class_label", None, "for a model that has classes")
flags.DEFINE_string("image", None, "file of the first frame")
flags.DEFINE_string("last_image", None, "file of the last frame")
flags.DEFINE_string("clip", None, "file of frames to be continued")
flags.DEFINE_integer("clip_frames", 0, "4k+1 of them; 0: all", lower_bound=0)
flags.DEFINE_string("out", None, "file (mp4, gif, png, npz), or folder")
flags.DEFINE_integer("num_frames", None, f"4k+1; 1 is an image{OF_RUN}")
flags.DEFINE_integer("height", None, f"pixels{OF_RUN}")
flags.DEFINE_integer("width", None, f"pixels{OF_RUN}")
flags.DEFINE_integer("num_steps", None, f"from noise to data{OF_RUN}")
flags.DEFINE_float(
  "guidance_scale", None, f"1: none; higher: closer to text{OF_RUN}"
)
flags.DEFINE_string(
  "solver", None, "euler (default) or heun; of diffusion ddim or ancestral"
)
flags.DEFINE_float("shift", None, f"above 1: more steps near noise{OF_RUN}")
flags.DEFINE_integer(
  "seed", None, f"of the noise{OF_RUN}", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_integer("fps", 8, "frames per second", lower_bound=1)
flags.DEFINE_integer("upscale", 1, "pixels a side for each", lower_bound=1)
flags.DEFINE_integer("step", None, "checkpoint; the newest whole by default")
flags.DEFINE_string("weights", "ema", "ema or params")
flags.DEFINE_float("motion_score", None, "of the clip, as captions told it")
flags.DEFINE_string("text_encoder", None, "its folder, if it moved")


def main(
  workdir,
  out,
  fps,
  upscale,
  weights,
  solver=None,
  clip_frames=0,
  image=None,
  last_image=None,
  clip=None,
  prompt=None,
  prompts=None,
  num_frames=None,
  class_label=None,
  height=None,
  width=None,
  num_steps=None,
  guidance_scale=None,
  shift=None,
  seed=None,
  step=None,
  motion_score=None,
  text_encoder=None,
):
  """Returns the files written."""
  started = time.perf_counter()
  from goku_jax.data import clips, video_io
  from goku_jax.sample import draw, given, requests, restore

  captions = requests.read_prompts(prompt, prompts, class_label)
  if motion_score is not None:
    captions = [clips.add_motion_score(c, motion_score) for c in captions]
  trained = job.load_config(workdir, "flow").sample
  asked = dict(
    num_frames=num_frames,
    num_steps=num_steps,
    guidance_scale=guidance_scale,
    shift=shift,
    seed=seed,
  )
  settings = {k: trained[k] if v is None else v for k, v in asked.items()}
  settings["shift_tokens"] = trained.get("shift_tokens", 0)
  files = requests.name_files(
    out, captions, settings["num_frames"], many=bool(prompts)
  )
  frames = given.read_frames(
    image=image, last_image=last_image, clip=clip, clip_frames=clip_frames
  )
  run = restore.restore(
    workdir, step=step, weights=weights, text_encoder=text_encoder
  )
  known = restore.process_of(run.config).solvers
  settings["solver"] = solver or next(iter(known))
  labels = None if class_label is None else [class_label] * len(captions)
  with job.Progress(len(captions), 0, "sample") as progress:
    videos = draw.draw(
      run,
      captions,
      labels=labels,
      size=(height, width),
      given=[frames] * len(captions) if frames else None,
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
