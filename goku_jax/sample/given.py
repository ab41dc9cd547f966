"""Given frames as what a model is told of a clip: image-to-video and its kin.

The files are brought to the size of what is drawn, single frames are encoded as
images and runs as clips, by the autoencoder of the run.
"""

import logging

import numpy as np

from goku_jax.data import given, schema, transforms, video_io
from goku_jax.sample import codec as codecs
from goku_jax.typing import UserError

FITS = ("crop", "pad")


def read_frames(
  *, image=None, last_image=None, clip=None, clip_frames: int = 0
) -> dict[int, np.ndarray]:
  """Frames uint8 `[n, H, W, 3]` of files, by their place in time: 0, or -1.

  Args:
    image: file of the first frame.
    last_image: file of the last one, beside `image`.
    clip: file whose first `clip_frames` (4k+1) are continued.
    clip_frames: how many; 0: as many as it has.

  Raises:
    UserError: files that do not go together, or cannot be read.
  """
  if clip and (image or last_image):
    raise UserError("give --clip, or --image and perhaps --last_image")
  if last_image and not image:
    raise UserError("--last_image goes with --image, the first frame")
  frames = {}
  for place, path in ((0, image), (-1, last_image)):
    if path:
      frames[place] = video_io.read_video(path)[0][:1]
  if clip:
    video, _ = video_io.read_video(clip)
    count = clip_frames or (len(video) - 1) // 4 * 4 + 1
    schema.check_frames(count)
    if count > len(video):
      raise UserError(
        f"--clip={clip} has {len(video)} frames, {count} are asked"
      )
    frames[0] = video[:count]
  return frames


def fit(video: np.ndarray, height: int, width: int, how: str) -> np.ndarray:
  """Frames at a size: scaled to cover it and cut, or to fit in it and padded.

  Raises:
    UserError: `how` is neither.
  """
  if how not in FITS:
    raise UserError(f"sample.fit={how!r} is not one of {', '.join(FITS)}")
  old = video.shape[1:3]
  if old == (height, width):
    return video
  if old[0] * width != old[1] * height:
    logging.warning(
      "the given frames of %dx%d have another aspect than %dx%d: sample.fit=%s",
      *old,
      height,
      width,
      how,
    )
  if how == "crop":
    return _cover(video, (height, width))
  scale = min(height / old[0], width / old[1])
  inner = tuple(max(1, round(side * scale)) for side in old)
  margins = [
    ((n - m) // 2, (n - m + 1) // 2)
    for n, m in zip((height, width), inner, strict=True)
  ]
  return np.pad(_cover(video, inner), ((0, 0), *margins, (0, 0)))


def _cover(video, size):
  video = transforms.resize_to_cover(video, size)
  return transforms.crop_centre(video, size, "given frames")


def encode(codec: codecs.Codec, shape, frames: dict[int, np.ndarray]):
  """The condition [T, H, W, C + 1] of given frames of the size that is drawn.

  Args:
    codec: of the run.
    shape: (T, H, W, C) of the latents that are drawn.
    frames: as `read_frames` gives them.

  Raises:
    UserError: they leave nothing to draw.
  """
  runs = [
    (place % shape[0], codecs.encode(codec, video[None])[0])
    for place, video in frames.items()
  ]
  if sum(len(latents) for _, latents in runs) >= shape[0]:
    raise UserError(
      f"{sum(map(len, frames.values()))} given frames leave none to draw: ask"
      " for more with --num_frames"
    )
  return given.fill(shape, runs)
