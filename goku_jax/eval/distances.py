"""Suites of distances between what a model draws and what is real.

`fid` is ADM's family (FID, sFID, Inception score, precision, recall), `fvd` the
Frechet and kernel distance of I3D's logits, `vgg16` the same of VGG16's
features, whose weights can be had by anyone and which is no FID. Every result
names protocol, N, network, resize and digest of weights.

Letters: N samples, T H W frames, height, width.
"""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from goku_jax import job
from goku_jax.data import digits, video_io
from goku_jax.eval import judges, neighbours, reference, statistics
from goku_jax.sample import draw, requests
from goku_jax.sample.restore import Restored
from goku_jax.typing import UserError

AT_ONCE = 64  # samples that are drawn and read
CLIPS = {  # resize rule and covariance of each convention of FVD
  "styleganv": ("half_pixel", "biased"),
  "videogpt": ("half_pixel_crop", "unbiased"),
}
SAMPLING = ("num_frames", "num_steps", "guidance_scale", "shift", "seed")
PROTOCOL_N = {"fid": 50_000, "fvd": 2_048}


def run_fid(run: Restored, settings: dict) -> dict:
  """FID, sFID, Inception score, precision and recall, as ADM has them.

  The score needs whole splits of 5,000. Of a published .npz, precision and
  recall need its images.
  """
  judge = judges.load_inception(settings["weights"])
  made = _features(judge, _asked(run, settings), first_frame)
  widths = [made[name].shape[1] for name in ("pool3", "spatial")]
  real = None
  if _is_file(settings):
    published = reference.load(settings["reference"], *widths)
    fits = published.pool, published.spatial
    if reference.has_images(settings["reference"]):
      real = judge.read(reference.load_images(settings["reference"]))
  else:
    real = _features(judge, _real(run, settings), first_frame)
    fits = [statistics.fit(real[name]) for name in ("pool3", "spatial")]
  found = {
    name: statistics.frechet_distance(statistics.fit(made[layer]), fit)
    for name, layer, fit in zip(
      ("fid", "sfid"), ("pool3", "spatial"), fits, strict=True
    )
  }
  adm = statistics.IS_PROTOCOLS["adm"]
  if len(made["logits"]) % adm["split_size"] == 0:
    mean, _ = statistics.inception_score(made["logits"], **adm)
    found["inception_score"] = mean
  if real is not None:
    found |= neighbours.precision_recall(real["pool3"], made["pool3"])
  return _result("fid", "adm", found, len(made["pool3"]), judge)


def run_vgg16(run: Restored, settings: dict) -> dict:
  """Frechet and kernel distance, density and coverage in VGG16's features."""
  judge = judges.load_vgg(settings["weights"])
  made = _features(judge, _asked(run, settings), first_frame)["features"]
  real = _features(judge, _real(run, settings), first_frame)["features"]
  fit = statistics.fit
  found = {
    "frechet_distance": statistics.frechet_distance(fit(made), fit(real)),
    "kernel_distance": statistics.kernel_distance(made, real),
    **neighbours.prdc(real, made),
  }
  return _result("vgg16", "vgg16", found, len(made), judge, len(real))


def run_fvd(run: Restored, settings: dict) -> dict:
  """Frechet and kernel distance of I3D's logits, by a named convention."""
  convention = settings["protocol"]
  if convention not in CLIPS:
    raise UserError(
      f"evals.fvd.protocol={convention!r} is not one of {', '.join(CLIPS)}"
    )
  rule, covariance = CLIPS[convention]
  judge = judges.load_i3d(settings["weights"], rule)
  clips = lambda video: video[: settings["clip_frames"]]
  made = _features(judge, _asked(run, settings), clips)["logits"]
  real = _features(judge, _real(run, settings), clips)["logits"]
  one, two = (statistics.fit(x, covariance) for x in (made, real))
  found = {
    "fvd": statistics.frechet_distance(one, two),
    "kvd": statistics.kernel_distance(made, real),
  }
  return _result("fvd", convention, found, len(made), judge, len(real))


def first_frame(video_THWC):
  """What the networks of images see of a video."""
  return video_THWC[0]


def _result(suite, protocol, found, count, judge, num_real=None):
  wanted = PROTOCOL_N.get(suite, count)
  whole = count if count >= wanted else f"{count} of {wanted}"
  return {
    suite: found,
    "protocol": protocol,
    "num_samples": whole,
    **({"num_real": num_real} if num_real else {}),
    **judge.about,
  }


def _features(judge, videos: Iterator[np.ndarray], part: Callable) -> dict:
  """Features by name, [N, D], of a part of each video."""
  found, waiting = [], []
  for video in videos:
    waiting.append(part(video))
    if waiting[0].shape != waiting[-1].shape:
      raise UserError(
        f"pictures of {waiting[0].shape} and of {waiting[-1].shape} pixels do"
        " not go together: give those of one size"
      )
    if len(waiting) == AT_ONCE:
      found.append(judge.read(np.stack(waiting)))
      waiting = []
  if waiting:
    found.append(judge.read(np.stack(waiting)))
  if not found:
    raise UserError("there is nothing to measure: give samples and references")
  return {k: np.concatenate([x[k] for x in found]) for k in found[0]}


def _asked(run: Restored, settings) -> Iterator[np.ndarray]:
  """Videos that the model draws, a few at once, each by its own number."""
  count = settings["num_samples"]
  if count < 2:
    raise UserError(f"num_samples={count}: set 2 or more")
  captions, labels = _conditions(run, settings)
  sampling = {k: settings[k] for k in SAMPLING}
  with job.Progress(count, 0, "draw") as progress:
    for start in range(0, count, AT_ONCE):
      here = range(start, min(start + AT_ONCE, count))
      of = lambda rows, here=here: [rows[i % len(rows)] for i in here]
      yield from draw.draw(
        run,
        of(captions),
        labels=labels and of(labels),
        indices=list(here),
        size=tuple(settings["size"] or (None, None)),
        **sampling,
      )
      progress.update(here.stop)


def _conditions(run, settings):
  """Captions and labels, which take turns, so that no class is in a row."""
  classes = run.model.config.num_classes
  if settings["prompts"]:
    captions = requests.read_prompts(None, settings["prompts"], None)
    return captions, list(range(classes)) or None
  if "digits" in run.config.data:
    if settings["num_frames"] == 1:
      pairs = [(digit, -1) for digit in range(10)]
    else:
      pairs = digits.PAIRS["train"]
    captions = [digits.prompt(*pair) for pair in pairs]
    return captions, [digit for digit, _ in pairs] if classes else None
  if not classes:
    raise UserError("set the suite's prompts to a file of prompts, one a line")
  return [""] * classes, list(range(classes))


def _real(run: Restored, settings) -> Iterator[np.ndarray]:
  """Videos of the folder `reference`; of a run on digits, unseen ones."""
  if settings["reference"]:
    for path in video_io.list_videos(settings["reference"]):
      yield video_io.read_video(path)[0]
  elif "digits" in run.config.data:
    frames, side = settings["num_frames"], run.config.sample.size[0]
    raw = digits.Digits(
      "test",
      seed=settings["seed"],
      num_frames=max(frames, 5),
      canvas=side,
      num_samples=settings["num_samples"],
      image_share=float(frames == 1),
    )
    for i in range(len(raw)):
      yield raw[i]["video"]
  else:
    raise UserError(
      "set the suite's reference to a folder of pictures or videos"
    )


def _is_file(settings) -> bool:
  """Whether the reference is statistics, and no folder of what is real."""
  return pathlib.Path(settings["reference"] or "").suffix == ".npz"


RUN = {"fid": run_fid, "fvd": run_fvd, "vgg16": run_vgg16}
