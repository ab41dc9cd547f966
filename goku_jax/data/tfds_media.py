"""Media out of TFDS records, as files that any decoder reads.

An Image stays as it was encoded. Frames, of a Video or of a Tensor of uint8
[T, H, W, 3], become an AVI file whose packets they are, encoded or raw, at the
rate of the scalar `fps`; a single frame of a Tensor becomes a PNG.
"""

import fractions
import io
import zlib
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from goku_jax.data.item_readers import Problem

FPS = 25  # where a record does not tell; ucf101 has it
_ENCODED = {  # by the first three bytes
  b"\x89PN": ("png", "rgb24"),
  b"\xff\xd8\xff": ("mjpeg", "yuvj420p"),
}


class Feature(NamedTuple):
  """A leaf of features.json."""

  name: str  # with what it lies in: captions/text
  kind: str  # Image, Video, Tensor, Scalar, Text, ClassLabel, ...
  content: dict
  repeated: bool  # whether it lies in a sequence

  @property
  def base(self) -> str:
    """The name alone."""
    return self.name.rsplit("/", 1)[-1]

  @property
  def shape(self) -> list[int]:
    """Sizes, -1 for those that differ."""
    dimensions = self.content.get("shape", {}).get("dimensions", [])
    return [int(size) for size in dimensions]

  @property
  def is_scalar(self) -> bool:
    """Whether it is one number, or the number of a class."""
    is_number = self.content.get("dtype") not in ("string", "object")
    is_one = self.kind in ("Scalar", "Tensor") and not self.shape and is_number
    return not self.repeated and (is_one or self.kind == "ClassLabel")


def choose(features: list[Feature]) -> Feature | None:
  """The media: `video`, else `image`, else the first of their kind."""
  of_kind = lambda f: (
    f.kind in ("Video", "Image")
    or (
      f.kind == "Tensor"
      and f.content.get("dtype") == "uint8"
      and len(f.shape) in (3, 4)
      and f.shape[-1] == 3
      and not f.repeated
    )
  )
  rank = lambda f: (f.base != "video", f.base != "image", f.kind == "Tensor")
  return min(filter(of_kind, features), key=rank, default=None)


def encode(feature: Feature, example: dict, fps: float | None) -> bytes:
  """The media of a record as the bytes of a file; raises `Problem`."""
  if feature.kind == "Tensor":
    video_THWC = _tensor(feature, example)
    if len(video_THWC) == 1:
      file = io.BytesIO()
      Image.fromarray(video_THWC[0]).save(file, "PNG")
      return file.getvalue()
    # What AVI calls raw is blue, green, red.
    packets = [frame[..., ::-1].tobytes() for frame in video_THWC]
    size = video_THWC.shape[2], video_THWC.shape[1]
    return _film(packets, "rawvideo", "bgr24", size, fps)
  frames = example.get(feature.name)
  if not frames:
    raise Problem(f"has no {feature.name}")
  if feature.kind == "Image" and not feature.repeated:
    return frames[0]
  return _encoded_film(frames, fps)


def _tensor(feature, example) -> np.ndarray:
  """Frames [T, H, W, 3] of uint8 from how TFDS keeps them."""
  name, shape = feature.name, feature.shape
  values = example.get(name, example.get(f"{name}/value", ()))
  if f"{name}/shape" in example:  # where more than one size differs
    shape = example[f"{name}/shape"].tolist()
  try:
    if isinstance(values, np.ndarray):
      array = values.astype(np.uint8)
    elif feature.content.get("encoding") == "zlib":
      array = np.frombuffer(zlib.decompress(values[0]), np.uint8)
    else:
      array = np.frombuffer(values[0], np.uint8)
    video_THWC = array.reshape(shape)
  except (ValueError, IndexError, zlib.error):
    raise Problem(f"{name} is no array of {shape}") from None
  if not video_THWC.size:
    raise Problem(f"has no {name}")
  return video_THWC if video_THWC.ndim == 4 else video_THWC[None]


def _encoded_film(frames, fps) -> bytes:
  kinds = {frame[:3] for frame in frames}
  kind = _ENCODED.get(kinds.pop()) if len(kinds) == 1 else None
  if not kind:
    raise Problem("its frames are neither all PNG nor all JPEG")
  try:
    file = io.BytesIO(frames[0])
    with Image.open(file, formats=("PNG", "JPEG")) as image:
      size = image.size
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
    raise Problem("its first frame cannot be read") from None
  return _film(frames, *kind, size, fps)


def _film(packets, codec, pix_fmt, size, fps) -> bytes:
  """An AVI file of packets as they are."""
  rate = fps if fps and 1 / 1000 <= fps <= 1000 else FPS
  rate = fractions.Fraction(rate).limit_denominator(1001)
  file = io.BytesIO()
  with av.open(file, "w", format="avi") as container:
    stream = container.add_stream(codec, rate=rate)
    (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
    for i, data in enumerate(packets):
      packet = av.Packet(data)
      packet.stream, packet.time_base = stream, 1 / rate
      packet.pts = packet.dts = i
      packet.is_keyframe = True
      container.mux(packet)
  return file.getvalue()
