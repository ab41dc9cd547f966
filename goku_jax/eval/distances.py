"""Suites of distances between what a model draws and what is real.

`fid` is ADM's family (FID, sFID, Inception score, precision, recall), `fvd` the
Frechet and kernel distance of I3D's logits, `vgg16` the same of VGG16's
features, whose weights can be had by anyone and which is no FID. `clip_score`
compares videos with their captions, and `ucf101` is the paper's Table 6. Every
result names protocol, N, size, network, resize and digest of weights.

Letters: N samples, T H W frames, height, width, C colours, D numbers in a
feature.
"""

import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from goku_jax import files
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
MOST_KEPT = 6  # a job's suites, `ucf101` at each size
_KEPT = {}
PROTOCOL_N = {"fid": 50_000, "fvd": 2_048, "ucf101": 13_320}


def run_fid(run: Restored, settings: dict) -> dict:
  """FID, sFID, Inception score, precision and recall, as ADM has them.

  The score needs whole splits of 5,000. Of a published .npz, precision and
  recall need its images.
  """
  judge = judges.load_inception(settings["weights"])
  fits, pool_real, shape, about = _once(
    ("fid", run.config, settings, judge.about),
    lambda: _fid_reference(run, settings, judge),
  )
  made, shape = read(judge, samples.drawn(run, settings), first_frame, shape)
  found = {
    name: statistics.frechet_distance(statistics.fit(made[layer]), fit)
    for (name, layer), fit in zip(
      {"fid": "pool3", "sfid": "spatial"}.items(), fits, strict=True
    )
  }
  found["inception_score"] = _adm_score(made["logits"])
  if pool_real is not None:
    found |= neighbours.precision_recall(pool_real, made["pool3"])
  count = len(made["pool3"])
  return _result("fid", "adm", found, count, shape, judge) | about


def _fid_reference(run, settings, judge):
  """Two Gaussians, real pool3 if any, a picture's shape, what to name."""
  path = pathlib.Path(settings["reference"] or "")
  if path.suffix != ".npz":
    real, shape = read(judge, samples.real(run, settings), first_frame)
    fits = [statistics.fit(real[name]) for name in ("pool3", "spatial")]
    return fits, real["pool3"], shape, {"num_real": len(real["pool3"])}
  published = reference.load(path, *judges.inception.WIDTHS.values())
  about = {"reference_sha256": files.digest_file(path)}
  fits = published.pool, published.spatial
  if not reference.has_images(path):
    return fits, None, None, about
  images = reference.load_images(path)
  pool = judge.read(images)["pool3"]
  return fits, pool, images.shape[1:], about | {"num_real": len(images)}


def _adm_score(logits_NK):
  protocol = statistics.IS_PROTOCOLS["adm"]
  if len(logits_NK) % protocol["split_size"]:
    return f"needs a multiple of {protocol['split_size']} samples"
  return statistics.inception_score(logits_NK, **protocol)[0]


def run_vgg16(run: Restored, settings: dict) -> dict:
  """Frechet and kernel distance, density and coverage in VGG16's features."""
  judge = judges.load_vgg(settings["weights"])
  real, shape = _real(run, settings, judge, first_frame)
  made, _ = read(judge, samples.drawn(run, settings), first_frame, shape)
  real, made = real["features"], made["features"]
  found = {**_distances(made, real), **neighbours.prdc(real, made)}
  result = _result("vgg16", "vgg16", found, len(made), shape, judge)
  return result | {"num_real": len(real)}


def _distances(made, real, covariance="unbiased"):
  fits = (statistics.fit(x, covariance) for x in (made, real))
  return {
    "frechet_distance": statistics.frechet_distance(*fits),
    "kernel_distance": statistics.kernel_distance(made, real),
  }


def run_fvd(run: Restored, settings: dict) -> dict:
  """Frechet and kernel distance of I3D's logits, by a named convention."""
  convention = settings["protocol"]
  if convention not in CLIPS:
    raise UserError(
      f"evals.fvd.protocol={convention!r} is not one of {', '.join(CLIPS)}"
    )
  _check_frames("fvd", settings)
  rule, covariance = CLIPS[convention]
  judge = judges.load_i3d(settings["weights"], rule)
  clip = lambda video: video[: settings["clip_frames"]]
  if settings["reference"]:
    size = settings["size"] or run.config.sample.size
    real, shape = _real_clips(judge, settings, size)
  else:
    real, shape = _real(run, settings, judge, clip)
  made, _ = read(judge, samples.drawn(run, settings), clip, shape)
  real, made = real["logits"], made["logits"]
  distances = _distances(made, real, covariance)
  found = dict(zip(("fvd", "kvd"), distances.values(), strict=True))
  result = _result("fvd", convention, found, len(made), shape, judge)
  return result | {"num_real": len(real), "fps": _fps(settings)}


def run_ucf101(run: Restored, settings: dict) -> dict:
  """FVD and Inception score at each of `sizes`, by StyleGAN-V's conventions.

  Table 6 of the paper: a video for each of UCF-101's 13,320, drawn from its
  caption. Sides that the model cannot draw are drawn larger and cropped.
  """
  rule, covariance = CLIPS["styleganv"]
  logits = judges.load_i3d(settings["i3d"], rule)
  classes = judges.load_c3d(settings["c3d"])
  both = judges.together({"i3d": logits, "c3d": classes})
  _check_frames("ucf101", settings)
  if not settings["reference"]:
    raise UserError("set evals.ucf101.reference to the folder of UCF-101")
  found = {"fvd": {}, "inception_score": {}, "inception_score_std": {}}
  units = run.codec.stride[1:], run.model.config.patch_size[1:]
  for size in settings["sizes"]:
    name = "x".join(map(str, size))
    real, shape = _real_clips(logits, settings, size)
    drawn = tuple(
      -(-n // (s * p)) * s * p for n, s, p in zip(size, *units, strict=True)
    )
    clip = lambda video, size=size: transforms.crop_centre(
      video[: settings["clip_frames"]], size, "a sample"
    )
    videos = samples.drawn(run, settings, size=drawn)
    made, _ = read(both, videos, clip, shape)
    fits = (
      statistics.fit(x, covariance)
      for x in (made["i3d.logits"], real["logits"])
    )
    found["fvd"][name] = statistics.frechet_distance(*fits)
    mean, std = statistics.inception_score(
      made["c3d.logits"], **statistics.IS_PROTOCOLS["stylegan_v"]
    )
    found["inception_score"][name] = mean
    found["inception_score_std"][name] = std
  about = {f"inception_score_{k}": v for k, v in classes.about.items()}
  return found | {
    "protocol": "styleganv",
    "num_samples": _count("ucf101", settings["num_samples"]),
    "num_real": len(real["logits"]),
    "clip_frames": settings["clip_frames"],
    "fps": _fps(settings),
    **logits.about,
    **about,
  }


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


def first_frame(video_THWC):
  """What the networks of images see of a video."""
  return video_THWC[0]


def read(
  judge: judges.Judge,
  videos: Iterable[np.ndarray],
  part: Callable,
  shape: tuple | None = None,
) -> tuple[dict, tuple]:
  """Features by name, [N, D], of a part of each video, and the part's shape.

  Args:
    judge: what reads them.
    videos: uint8 [T, H, W, C] each.
    part: of a video, to what is read.
    shape: that all parts must have, as others had; None: that of the first.

  Raises:
    UserError: there are none, or of two sizes.
  """
  found, waiting = [], []
  for video in videos:
    waiting.append(part(video))
    shape = shape or waiting[0].shape
    if waiting[-1].shape != tuple(shape):
      raise UserError(
        f"pictures or clips of {_named(shape)} and of"
        f" {_named(waiting[-1].shape)} pixels do not go together: give"
        " references of one size, and draw that (size)"
      )
    if len(waiting) == AT_ONCE:
      found.append(judge.read(np.stack(waiting)))
      waiting = []
  if waiting:
    found.append(judge.read(np.stack(waiting)))
  if not found:
    raise UserError("there is nothing to measure: give samples and references")
  return {k: np.concatenate([x[k] for x in found]) for k in found[0]}, shape


def _real(run, settings, judge, part):
  videos = samples.real(run, settings)
  key = run.config, settings, judge.about
  return _once(key, lambda: read(judge, videos, part))


def _real_clips(judge, settings, size):
  clips = samples.real_clips(
    settings["reference"],
    size,
    settings["clip_frames"],
    count=settings["num_real"],
    fps=settings["fps"],
    seed=settings["seed"],
  )
  key = settings, size, judge.about
  return _once(key, lambda: read(judge, clips, lambda clip: clip))


def _once(key, make: Callable):
  """What references give, kept for the next checkpoint that is judged."""
  name = repr(key)
  if name not in _KEPT:
    if len(_KEPT) == MOST_KEPT:
      del _KEPT[next(iter(_KEPT))]  # the oldest
    _KEPT[name] = make()
  return _KEPT[name]


def _check_frames(suite, settings):
  drawn, wanted = settings["num_frames"], settings["clip_frames"]
  if drawn < wanted:
    raise UserError(
      f"evals.{suite}: num_frames={drawn} drawn are fewer than"
      f" clip_frames={wanted}"
    )
  if suite == "ucf101" and wanted != c3d.FRAMES:
    raise UserError(
      f"evals.ucf101.clip_frames={wanted}: the Inception score is of"
      f" {c3d.FRAMES}"
    )


def _result(suite, protocol, found, count, shape, judge):
  return {
    suite: found,
    "protocol": protocol,
    "num_samples": _count(suite, count),
    "size": _named(shape),
    **judge.about,
  }


def _count(suite, count):
  wanted = PROTOCOL_N.get(suite, count)
  return count if count >= wanted else f"{count} of {wanted}"


def _fps(settings):
  return settings["fps"] or "of the files"


def _named(shape):
  """17x256x256 of a clip [17, 256, 256, 3], 256x256 of a picture."""
  return "x".join(map(str, shape[:-1]))


RUN = {
  "fid": run_fid,
  "fvd": run_fvd,
  "vgg16": run_vgg16,
  "clip_score": run_clip_score,
  "ucf101": run_ucf101,
}
