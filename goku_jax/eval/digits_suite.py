"""The digits suite: draws, judges and reports.

Sets of clips are judged alike: `generated` from the prompts of pairs seen in
training, `held_out_pairs` from those that never were, `real` held-out clips
(the ceiling), the same `reconstructed` by the autoencoder, `image_to_video`
from their first frames and captions where the model is told of given frames,
and clips of an `untrained` model (the floor). A model with classes is given the
digit as its class too; one of classes alone cannot be asked for a motion, and
is refused.
"""

import functools
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from goku_jax import files, job
from goku_jax.config import make_settings
from goku_jax.data import digits as data
from goku_jax.data import video_io
from goku_jax.eval import digit_distances, digits
from goku_jax.sample import codec as codecs
from goku_jax.sample import draw, restore
from goku_jax.typing import UserError

NUM_HELD_OUT = 70  # ten of each pair
NUM_REAL = 252
NUM_UNTRAINED = 63
NUM_SHOWN = 24  # on the sheet and as files
SEED_REAL = 1


class Settings(NamedTuple):
  """The section `evals.digits` of a config."""

  num_videos: int  # generated from prompts of training
  num_steps: int  # of sampling
  guidance_scale: float
  shift: float
  seed: int  # of noise and of the judge


def run(run: restore.Restored, out, *, started: float, **settings) -> dict:
  """Figures of every set; all processes draw, the first one writes to `out`.

  Args:
    run: the model.
    out: folder of report.md, report.json, contact_sheet.png and samples/*.mp4.
    started: what `seconds` counts from, in seconds of the epoch: the work that
      led here may be older than this process.
    settings: as of `Settings`.

  Raises:
    UserError: a setting, or a model that shows no motion or reads no text.
  """
  options = check_settings(run, **settings)
  canvas, num_frames = run.config.sample.size[0], run.config.sample.num_frames
  sampling = dict(num_frames=num_frames, **options._asdict())
  num_videos, seed = sampling.pop("num_videos"), options.seed
  judge = digits.train_judge(seed, canvas=canvas)
  print(f"judge accuracy on held-out glyphs {judge.accuracy:.4f}", flush=True)

  def drawn(model, asked, given=None):
    captions, digit, *_ = map(list, zip(*asked, strict=True))
    with job.Progress(len(asked), 0, "digits") as progress:
      return draw.draw(
        model,
        captions,
        labels=digit if model.model.config.num_classes else None,
        given=given,
        progress=progress.update,
        **sampling,
      )

  def judged(model, num, pairs):
    asked = requests(num, pairs)
    return drawn(model, asked), asked

  found = {
    "generated": judged(run, num_videos, "train"),
    "held_out_pairs": judged(run, NUM_HELD_OUT, "held_out"),
    "real": real_samples(NUM_REAL, num_frames, canvas),
    "untrained": judged(untrained(run, seed), NUM_UNTRAINED, "train"),
  }
  videos, asked = found["real"]
  found["reconstructed"] = reconstruct(run.codec, videos), asked
  if run.model.config.conditioned:
    first = [{0: video[:1]} for video in videos]
    found["image_to_video"] = drawn(run, asked, first), asked
  scores = {name: judge_set(judge, *pair) for name, pair in found.items()}
  distances = measure(judge, found, seed, canvas)
  result = {
    "judge_accuracy": judge.accuracy,
    **scores,
    **distances,
    "step": run.step,
    **sampling,
    "seconds": time.time() - started,
  }
  write(pathlib.Path(out), found, result)
  return result


def measure(judge, found: dict, seed: int, canvas: int) -> dict:
  """Distances from real clips of those that were generated, and decoded."""
  train = digit_distances.training(judge, canvas)
  real = digit_distances.read(judge, *found["real"])
  distances = {}
  for name in ("generated", "reconstructed"):
    made = digit_distances.read(judge, *found[name])
    cas = digit_distances.cas(made, seed=seed, canvas=canvas)
    compared = digit_distances.compare(train, real, made)
    distances[f"{name}_distances"] = {**compared, "cas": cas}
  return distances


def check_settings(run: restore.Restored, **settings) -> Settings:
  """The settings, refused where the run's model could not follow."""
  options = make_settings(Settings, settings, "evals.digits")
  sample = run.config.sample
  if sample.num_frames < 5:
    raise UserError(
      f"the run's clips of {sample.num_frames} frames show no motion"
    )
  if not run.model.text_config:
    raise UserError(
      "this model reads no text, and the suite asks for motion in words: judge"
      " one of condition=text or both"
    )
  if options.num_videos < 2:
    raise UserError(
      f"evals.digits.num_videos={options.num_videos}: set 2 or more"
    )
  captions, digit, *_ = map(list, zip(*requests(1, "train"), strict=True))
  sampling = options._asdict()
  del sampling["num_videos"]
  try:
    draw.check(
      run,
      captions,
      labels=digit if run.model.config.num_classes else None,
      num_frames=sample.num_frames,
      **sampling,
    )
  except UserError as error:
    raise UserError(f"evals.digits: {error}") from error
  return options


def write(out: pathlib.Path, found: dict, result: dict):
  """Pictures, the page and, last, the figures: by the first process alone."""
  if jax.process_index():
    return
  write_samples(out, found)
  page = digits.report_markdown(result)
  files.write_whole(out / "report.md", page.encode())
  files.write_json(out / "report.json", result)


def requests(num: int, pairs: str) -> list[tuple]:
  """Prompts with the digit, direction and speed (NaN: not said) they ask for.

  All pairs in turn, the speed unsaid, slow and quick in turn.
  """
  speeds = (None, *data.SPEEDS)
  asked = []
  for i in range(num):
    turn, k = divmod(i, len(data.PAIRS[pairs]))
    digit, direction = data.PAIRS[pairs][k]
    speed = None if direction == data.STILL else speeds[(turn + k) % 3]
    caption = data.prompt(digit, direction, speed)
    asked.append((caption, digit, direction, speed or np.nan))
  return asked


def real_samples(num, num_frames, canvas, *, seed=SEED_REAL, image_share=0.0):
  """Samples of glyphs that neither the models nor the judge have seen."""
  raw = data.Digits(
    "test",
    seed=seed,
    num_frames=num_frames,
    canvas=canvas,
    num_samples=num,
    image_share=image_share,
  )
  samples = [raw[i] for i in range(len(raw))]
  asked = [
    (s["caption"], s["digit"], s["direction"], s["speed"]) for s in samples
  ]
  return [s["video"] for s in samples], asked


def untrained(run: restore.Restored, seed: int) -> restore.Restored:
  """The same model with initial parameters."""
  plain = restore.make_model(run.config, run.codec)
  init = jax.jit(functools.partial(restore.init_params, plain))
  return run._replace(params=init(jax.random.key(seed)))


def reconstruct(codec: codecs.Codec, videos: list) -> list:
  """Videos through the autoencoder's mean and back."""
  if not codec.model:
    return videos
  latents = []
  for start in range(0, len(videos), codecs.BATCH):
    clips = np.stack(videos[start : start + codecs.BATCH])
    latents += list(codecs.encode(codec, clips))
  return codecs.decode(codec, latents)


def judge_set(judge, videos, asked) -> dict:
  """The judge's figures of a set of clips."""
  _, wanted, directions, speeds = zip(*asked, strict=True)
  return digits.score(
    judge,
    np.stack(videos),
    np.array(wanted),
    np.array(directions),
    np.array(speeds),
  )


def write_samples(out: pathlib.Path, found: dict):
  """Generated clips as files, and a sheet of them above real ones."""
  names = ("generated", "held_out_pairs", "real", "image_to_video")
  names = [n for n in (*names, "reconstructed", "untrained") if n in found]
  rows, captions = [], []
  for name in names:
    videos, asked = found[name]
    shown = NUM_SHOWN if name == "generated" else 3
    # Evenly over the set, so that digits and directions differ.
    chosen = np.linspace(0, len(videos) - 1, min(shown, len(videos)))
    chosen = chosen.round().astype(int)
    for start in range(0, len(chosen), 3):
      row = chosen[start : start + 3]
      rows.append([videos[i] for i in row])
      captions.append([f"{name}: {asked[i][0]}" for i in row])
    if name == "generated":
      for i in chosen:
        path = out / "samples" / f"{asked[i][0].replace(' ', '_')}.mp4"
        video_io.write_video(path, videos[i], fps=8, upscale=8)
  video_io.contact_sheet(rows, captions, out / "contact_sheet.png")
