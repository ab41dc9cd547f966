"""The reconstruction suite: clips through an autoencoder and back, measured.

Clips are read, measured and forgotten one by one: memory is that of a clip,
however many there are. Beside the autoencoder stands a linear coder of the
same compression (`eval/linear_coder.py`), where there are clips to fit it to.

Letters: T H W frames, height, width, C = 3 channels.
"""

import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from goku_jax import job
from goku_jax.config import make_settings
from goku_jax.data import transforms, video_io, videos
from goku_jax.eval import linear_coder, reconstruction, samples
from goku_jax.models import vae_stream
from goku_jax.sample import restore
from goku_jax.sample.codec import to_uint8
from goku_jax.typing import UserError

NUM_SHOWN = 3  # clips of the strip
AMPLIFIED = 4  # times the difference, around grey
MIN_TILE = 4  # latents of a side

# The least value of a setting.
LEAST = dict(
  num_clips=0, clips_per_file=1, num_frames=1, fps=0, chunk=0, tile=0
)


class Settings(NamedTuple):
  """The section `evals.reconstruction` of a config."""

  num_clips: int  # in all, from files evenly over the names; 0: of all files
  clips_per_file: int  # at most, one after the other from the first frame on
  num_frames: int  # of a clip; a shorter file is one shorter clip
  size: tuple[int, int]  # height, width; (0, 0): those of the file
  scale: bool  # until it just covers the size; else cut out as it is
  held_out: float  # judged are the files that training holds out; 0: all
  fps: float  # 0: that of the file
  frames: str  # beyond 4k+1: trim or refuse
  chunk: int  # frames through the autoencoder at once; 0: all
  tile: int  # pixels of the sides of tiles; 0: whole frames
  tile_error: bool  # measure tiles against whole frames too


def run(
  autoencoder: restore.RestoredVAE,
  data,
  out,
  *,
  fit=None,
  lpips_fn: Callable | None = None,
  started: float,
  **settings,
) -> dict:
  """Figures of the clips of a folder; writes them and a strip to `out`.

  Args:
    autoencoder: what is judged.
    data: folder of videos and pictures.
    out: folder of report.md, report.json and strip.png.
    fit: folder of training clips, for the linear coder; None leaves it out.
    lpips_fn: as of `lpips.of_clips`; None leaves LPIPS out.
    started: what `seconds` counts from, in seconds of the epoch.
    settings: as of `Settings`.
  """
  out = pathlib.Path(out)
  model, params = autoencoder.model, jax.device_put(autoencoder.params)
  stride = model.config.stride
  options = check_settings(stride, **settings)
  files = find_files(data, options, "held_out")
  coders = {}
  if fit:
    training = find_files(fit, options, "train")
    clips = read_clips(training, stride, options, "fit")
    coder = linear_coder.fit(
      (video for _, video, _ in clips), stride, model.config.latent_channels
    )
    coders["linear"] = functools.partial(linear_coder.reconstruct, coder)
  if options.tile_error:
    whole = options._replace(tile=0)
    coders["whole"] = lambda real: through(model, params, real, whole)[0]
  names = ("autoencoder", *coders)
  means = {name: reconstruction.Means(options.num_frames) for name in names}
  latents = reconstruction.LatentFigures()
  num_clips = num_frames = num_trimmed = 0
  tile_psnr = []
  shown = dict.fromkeys(samples.spread(files, NUM_SHOWN))
  for path, real, trimmed in read_clips(files, stride, options, "reconstruct"):
    video, mean, logvar = through(model, params, real, options)
    latents.add(mean, logvar)
    made = {"autoencoder": video}
    made |= {name: reconstruct(real) for name, reconstruct in coders.items()}
    for name, video in made.items():
      means[name].add(reconstruction.frame_figures(real, video, lpips_fn))
    if options.tile_error:
      figures = reconstruction.frame_figures(made["whole"], made["autoencoder"])
      tile_psnr.append(figures["psnr"].mean())
    num_clips, num_frames = num_clips + 1, num_frames + len(real)
    num_trimmed += trimmed > 0
    if path in shown and shown[path] is None:
      shown[path] = real, made
  result = {
    **{name: found.result() for name, found in means.items()},
    "latents": latents.result(),
    **({"tile_psnr": float(np.mean(tile_psnr))} if tile_psnr else {}),
    "num_clips": num_clips,
    "num_frames": num_frames,
    "num_trimmed": num_trimmed,
    "settings": options._asdict(),
    "step": autoencoder.step,
    "seconds": time.time() - started,
  }
  (out / "report.md").write_text(reconstruction.report_markdown(result))
  job.write_json(out / "report.json", result)
  write_strip(out / "strip.png", shown)
  return result


def check_settings(stride, **settings) -> Settings:
  """The settings of a config, refused where no autoencoder could follow."""
  options = make_settings(Settings, settings, "evals.reconstruction")
  wrong = lambda name, says: UserError(
    f"evals.reconstruction.{name}={getattr(options, name)!r}: {says}"
  )
  for name, least in LEAST.items():
    if getattr(options, name) < least:
      raise wrong(name, f"set {least} or more")
  if options.size != (0, 0) and min(options.size) < 1:
    raise wrong("size", "set height and width, or (0, 0) for those of the file")
  if not 0 <= options.held_out < 1:
    raise wrong("held_out", "set 0 or more, below 1")
  if options.frames not in transforms.REST:
    raise wrong("frames", f"set one of {', '.join(transforms.REST)}")
  if options.tile_error and not options.tile:
    raise wrong("tile_error", "set tile too")
  if 0 < options.tile < MIN_TILE * stride[1]:
    least = MIN_TILE * stride[1]
    raise wrong("tile", f"a quarter of it overlaps: set {least} or more")
  for name, n, unit in (
    ("chunk", stride[0], "frames"),
    ("tile", stride[1], "pixels"),
  ):
    if getattr(options, name) % n:
      raise wrong(name, f"set a multiple of the stride, {n} {unit}")
  return options


def find_files(folder, options: Settings, split) -> list[pathlib.Path]:
  """The files that `num_clips` clips come from, evenly over the names."""
  files = video_io.list_videos(folder)
  if options.held_out:
    names = {videos.name_of(path, folder): path for path in files}
    files = videos.split_shots(names, split, options.held_out)
  num = -(-options.num_clips // options.clips_per_file)
  return samples.spread(files, num) if num else files


def read_clips(
  files, stride, options: Settings, desc: str
) -> Iterator[tuple[pathlib.Path, np.ndarray, int]]:
  """Path, uint8 clip [T, H, W, 3] and how many frames were trimmed off it."""
  left = options.num_clips or None
  with job.Progress(len(files), 0, desc) as progress:
    clips = itertools.islice(_clips_of(files, options, progress), left)
    for path, video_THWC in clips:
      video_THWC = transforms.check_pixels(video_THWC, path)
      if options.size != (0, 0):
        if options.scale:
          video_THWC = transforms.resize_to_cover(video_THWC, options.size)
        video_THWC = transforms.crop_centre(video_THWC, options.size, path)
      kept = transforms.trim_frames(video_THWC, stride[0], options.frames, path)
      trimmed = len(video_THWC) - len(kept)
      if trimmed:
        print(f"{path}: {len(kept)} of {len(video_THWC)} frames", flush=True)
      yield path, kept, trimmed


def _clips_of(files, options, progress):
  for i, path in enumerate(files):
    clips = video_io.read_clips(path, options.num_frames, options.fps)
    for video_THWC in itertools.islice(clips, options.clips_per_file):
      yield path, video_THWC
    progress.update(i + 1)


def through(model, params, video_THWC: np.ndarray, options: Settings):
  """A uint8 clip through the posterior mean and back, and its moments.

  Returns:
    The uint8 clip, and mean and log-variance [t, h, w, c].

  Raises:
    UserError: the model gives numbers that are not finite.
  """
  chunk, tile = options.chunk, options.tile
  _, H, W, _ = video_THWC.shape
  t, *sides = model.config.stride
  padded = transforms.pad_sides(video_THWC, sides)
  mean, logvar = vae_stream.encode(
    model, params, padded[None], chunk=chunk, tile=tile
  )
  made = vae_stream.decode(
    model, params, mean, chunk=chunk // t, tile=tile // sides[0]
  )
  if not np.isfinite(made).all():
    raise UserError("the autoencoder gives pixels that are not finite")
  return to_uint8(made[0, :, :H, :W]), mean[0], logvar[0]


def write_strip(path: pathlib.Path, shown: dict):
  """Clips above their reconstructions and the differences, as a picture.

  Args:
    path: of the picture.
    shown: for each file the clip, and its reconstruction by each coder.
  """
  rows, captions = [], []
  for file, (real, made) in shown.items():
    rows.append([real])
    captions.append([f"{file.name}: original"])
    for name, video in made.items():
      psnr = reconstruction.frame_figures(real, video)["psnr"].mean()
      words = reconstruction.CODERS[name]
      difference = video.astype(np.int16) - real
      rows += [[video], [_around_grey(difference)]]
      captions.append([f"{words}, {psnr:.2f} dB"])
      captions.append([f"{words}: difference x{AMPLIFIED}, grey where none"])
  height = min(max(real.shape[1] for real, _ in shown.values()), 256)
  video_io.contact_sheet(rows, captions, path, frame_height=height)


def _around_grey(difference_THWC):
  grey = 128 + AMPLIFIED * difference_THWC
  return np.clip(grey, 0, 255).astype(np.uint8)
