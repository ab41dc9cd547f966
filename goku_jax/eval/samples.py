"""What suites compare: videos that a model draws, and real ones.

Letters: T H W frames, height, width.
"""

from collections.abc import Iterator

import numpy as np

from goku_jax import job
from goku_jax.data import digits, transforms, video_io
from goku_jax.sample import draw, requests
from goku_jax.sample.restore import Restored
from goku_jax.typing import UserError

AT_ONCE = 64  # samples that are drawn together
MANY = 1_000_000  # frames: no file is cut
SAMPLING = ("num_frames", "num_steps", "guidance_scale", "shift", "seed")


def drawn(
  run: Restored, settings: dict, *, size: tuple | None = None
) -> Iterator[np.ndarray]:
  """`num_samples` videos uint8 [T, H, W, 3], each with noise of its number.

  Args:
    run: the model.
    settings: of a suite.
    size: height and width, in place of the settings'.

  Raises:
    UserError: as `draw.draw`, or fewer than two samples.
  """
  count = settings["num_samples"]
  if count < 2:
    raise UserError(f"num_samples={count}: set 2 or more")
  captions, labels = conditions(run, settings)
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
        size=tuple(size or settings["size"] or (None, None)),
        **sampling,
      )
      progress.update(here.stop)


def conditions(run: Restored, settings: dict) -> tuple[list, list | None]:
  """Captions and labels, which take turns, so that no class is in a row.

  Those of the file `prompts`; else a run's own, of digits or of classes.
  """
  classes = run.model.config.num_classes
  if settings["prompts"]:
    if classes:
      raise UserError(
        "the model has classes, which a file of prompts does not name: leave"
        " the suite's prompts out"
      )
    return requests.read_prompts(None, settings["prompts"], None), None
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


def real(run: Restored, settings: dict) -> Iterator[np.ndarray]:
  """Videos of the folder `reference`; of a run on digits, unseen ones."""
  if settings["reference"]:
    for path in video_io.list_videos(settings["reference"]):
      yield transforms.check_pixels(video_io.read_video(path)[0], path)
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


def real_clips(
  folder,
  size: tuple[int, int],
  num_frames: int,
  *,
  count: int,
  fps: float,
  seed: int,
) -> Iterator[np.ndarray]:
  """A clip [num_frames, *size, 3] of each file that is long enough.

  It begins at a random frame (StyleGAN-V's way), is scaled until it covers
  `size` (bilinear, antialiased), and cut to its centre.

  Args:
    folder: of videos, at any depth.
    size: height and width.
    num_frames: of a clip, one after the other.
    count: of files, evenly over their names; 0: all.
    fps: frames are left out until so many a second remain; 0: as the file.
    seed: of where clips begin, by the file's place in the folder.
  """
  paths = video_io.list_videos(folder)
  for i, path in enumerate(spread(paths, count or len(paths))):
    whole = next(video_io.read_clips(path, MANY, fps))
    room = len(whole) - num_frames
    if room < 0:
      print(f"{path} is left out: {len(whole)} of {num_frames} frames")
      continue
    begin = np.random.default_rng((seed, i)).integers(room + 1)
    clip = whole[begin : begin + num_frames]
    clip = transforms.resize_to_cover(transforms.check_pixels(clip, path), size)
    yield transforms.crop_centre(clip, size, path)


def spread(items: list, num: int) -> list:
  """`num` of the items or fewer, evenly from the first to the last."""
  places = np.linspace(0, len(items) - 1, min(num, len(items)))
  return [items[i] for i in places.round().astype(int)]
