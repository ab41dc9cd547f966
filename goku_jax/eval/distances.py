"""Suites of distances between what a model draws and what is real.

`fid` is ADM's family (FID, sFID, Inception score, precision, recall), `fvd` the
Frechet and kernel distance of I3D's logits, `vgg16` the same of VGG16's
features, whose weights can be had by anyone and which is no FID. `clip_score`
compares videos with their captions, and `ucf101` is the paper's Table 6. Every
result names protocol, N, network, resize and digest of weights.

Letters: N samples, T H W frames, height, width.
"""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from goku_jax.data import transforms
from goku_jax.eval import (
  clip_score,
  judges,
  neighbours,
  reference,
  samples,
  statistics,
)
from goku_jax.models.judges import c3d
from goku_jax.sample.restore import Restored
from goku_jax.typing import UserError

AT_ONCE = 64  # samples that are read together
CLIPS = {  # resize rule and covariance of each convention of FVD
  "styleganv": ("half_pixel", "biased"),
  "videogpt": ("half_pixel_crop", "unbiased"),
}
PROTOCOL_N = {"fid": 50_000, "fvd": 2_048, "ucf101": 13_320}


def run_fid(run: Restored, settings: dict) -> dict:
  """FID, sFID, Inception score, precision and recall, as ADM has them.

  The score needs whole splits of 5,000. Of a published .npz, precision and
  recall need its images.
  """
  judge = judges.load_inception(settings["weights"])
  made = features(judge, samples.drawn(run, settings), first_frame)
  widths = [made[name].shape[1] for name in ("pool3", "spatial")]
  real = None
  if _is_file(settings):
    published = reference.load(settings["reference"], *widths)
    fits = published.pool, published.spatial
    if reference.has_images(settings["reference"]):
      real = judge.read(reference.load_images(settings["reference"]))
  else:
    real = features(judge, samples.real(run, settings), first_frame)
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
  made = features(judge, samples.drawn(run, settings), first_frame)["features"]
  real = features(judge, samples.real(run, settings), first_frame)["features"]
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
  made = features(judge, samples.drawn(run, settings), clips)["logits"]
  if settings["reference"]:
    videos = samples.real_clips(
      settings["reference"],
      settings["size"] or run.config.sample.size,
      settings["clip_frames"],
      fps=settings["fps"],
      seed=settings["seed"],
    )
  else:
    videos = samples.real(run, settings)
  real = features(judge, videos, clips)["logits"]
  one, two = (statistics.fit(x, covariance) for x in (made, real))
  found = {
    "fvd": statistics.frechet_distance(one, two),
    "kvd": statistics.kernel_distance(made, real),
  }
  return _result("fvd", convention, found, len(made), judge, len(real))


def run_clip_score(run: Restored, settings: dict) -> dict:
  """How near videos are to their captions, in CLIP's embeddings."""
  judges.check_there(settings["weights"], "clip")
  judge, prefix = clip_score.load(settings["weights"]), settings["prefix"]
  captions, _ = samples.conditions(run, settings)
  count = settings["num_samples"]
  captions = [captions[i % len(captions)] for i in range(count)]
  videos = samples.drawn(run, settings)
  cosines = judge.cosines(videos, captions, prefix=prefix)
  found = judge.result(cosines, settings["scaling"], prefix=prefix)
  return {"clip_score": {"mean": found.pop("clip_score")}, **found}


def run_ucf101(run: Restored, settings: dict) -> dict:
  """FVD and Inception score at each of `sizes`, by StyleGAN-V's conventions.

  Table 6 of the paper: a video for each of UCF-101's 13,320, drawn from its
  caption. Sides that the model cannot draw are drawn larger and cropped.
  """
  logits = judges.load_i3d(settings["i3d"], CLIPS["styleganv"][0])
  classes = judges.load_c3d(settings["c3d"])
  _check_reference(settings)
  found = {"fvd": {}, "inception_score": {}, "inception_score_std": {}}
  units = run.codec.stride[1:], run.model.config.patch_size[1:]
  for size in settings["sizes"]:
    name = "x".join(map(str, size))
    drawn = [
      -(-n // (s * p)) * s * p for n, s, p in zip(size, *units, strict=True)
    ]
    clip = lambda video, size=size: transforms.crop_centre(
      video[: c3d.FRAMES], size, "a sample"
    )
    both = {"fvd": logits, "inception_score": classes}
    videos = samples.drawn(run, settings, size=drawn)
    made = features(judges.together(both), videos, clip)
    videos = samples.real_clips(
      settings["reference"],
      size,
      c3d.FRAMES,
      fps=settings["fps"],
      seed=settings["seed"],
    )
    real = features(logits, videos, lambda video: video)["logits"]
    one, two = (
      statistics.fit(x, CLIPS["styleganv"][1])
      for x in (made["fvd.logits"], real)
    )
    found["fvd"][name] = statistics.frechet_distance(one, two)
    mean, std = statistics.inception_score(
      made["inception_score.logits"], **statistics.IS_PROTOCOLS["stylegan_v"]
    )
    found["inception_score"][name] = mean
    found["inception_score_std"][name] = std
  result = _result(
    "ucf101", "styleganv", found, settings["num_samples"], logits, len(real)
  )
  del result["ucf101"]
  about = {f"inception_score_{k}": v for k, v in classes.about.items()}
  frames = {"clip_frames": c3d.FRAMES, "fps": settings["fps"] or "of the file"}
  return {**found, **result, **about, **frames}


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


def features(judge, videos: Iterator[np.ndarray], part: Callable) -> dict:
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


def _check_reference(settings):
  if not settings["reference"]:
    raise UserError("set the suite's reference to a folder of videos")


def _is_file(settings) -> bool:
  """Whether the reference is statistics, and no folder of what is real."""
  return pathlib.Path(settings["reference"] or "").suffix == ".npz"


RUN = {
  "fid": run_fid,
  "fvd": run_fvd,
  "vgg16": run_vgg16,
  "clip_score": run_clip_score,
  "ucf101": run_ucf101,
}
