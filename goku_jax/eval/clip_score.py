"""CLIPScore: how near images are to their captions, in CLIP's embeddings.

The cosine of both embeddings, of a video in each of its frames. Three scalings
of it circulate, whose figures cannot be compared with one another:

  hessel        2.5 max(cos, 0), the mean of it (arXiv:2104.08718)
  torchmetrics  100 max(mean of cos, 0), as its class computes it
  cosine        the mean of cos

A video counts as one sample, the mean over its frames. Hessel's own program
puts "A photo depicts " before each caption: `prefix`.

Images are resized by Pillow (bicubic, antialiased, in uint8) until the shorter
side has the network's size, and cropped at the centre, as transformers'
CLIPImageProcessor does it.

Letters: N samples, T frames, H W height and width, S tokens, E numbers in an
embedding.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterable

import jax
import numpy as np
import PIL.Image

from goku_jax import files, trees, weights
from goku_jax.models.judges import clip
from goku_jax.typing import UserError

SCALINGS = ("hessel", "torchmetrics", "cosine")
RESIZE = "pillow bicubic antialiased, short side, centre crop"
ROWS = 32  # images, or captions, embedded at once
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TOKENIZER = "tokenizer.json"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class ClipScore:
  """A loaded network; `load` makes one."""

  def __init__(self, config, params, ids_of, digest):
    self.config, self.digest = config, digest
    self._params, self._ids_of = jax.device_put(params), ids_of
    self._image_fn = _jit(clip.ImageTower(config))
    self._text_fn = _jit(clip.TextTower(config))

  def cosines(
    self,
    videos: Iterable[np.ndarray],
    captions: list[str],
    *,
    prefix: str = "",
  ) -> list[np.ndarray]:
    """Cosines [T] of each video with its caption.

    Args:
      videos: uint8 [T, H, W, 3] each, of any sizes; an image has one frame.
      captions: of each video one; beyond 77 tokens they are cut.
      prefix: what is put before each caption.

    Raises:
      UserError: there are not as many captions, or pixels are not uint8.
    """
    lengths = []

    def frames():
      for i, video in enumerate(videos):
        lengths.append(len(_check(video, f"video {i}")))
        yield from video

    image_FE = self.embed_images(frames())
    if len(lengths) != len(captions) or not lengths:
      raise UserError(f"{len(lengths)} videos have {len(captions)} captions")
    text_NE = self.embed_texts([prefix + caption for caption in captions])
    parts = np.split(image_FE, np.cumsum(lengths)[:-1])
    return [x_TE @ text_E for x_TE, text_E in zip(parts, text_NE, strict=True)]

  def result(
    self, cosines: list[np.ndarray], scaling: str, *, prefix: str = ""
  ) -> dict:
    """The score of a set, and all that it depends on.

    Args:
      cosines: what `cosines` returned.
      scaling: one of SCALINGS.
      prefix: what `cosines` was given.
    """
    return {
      "clip_score": score(cosines, scaling),
      "scaling": scaling,
      "model": self.config.name,
      "sha256": self.digest,
      "prefix": prefix,
      "resize": f"{RESIZE}, {self.config.image_size}",
      "num_samples": len(cosines),
      "num_frames": sum(map(len, cosines)),
    }

  def embed_images(self, images: Iterable[np.ndarray]) -> np.ndarray:
    """Unit-length embeddings [N, E] of uint8 images [H, W, 3] of any sizes."""
    size = self.config.image_size
    prepared = (preprocess(image, size) for image in images)
    return self._embed(self._image_fn, "image", ((x,) for x in prepared))

  def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
    """Unit-length embeddings [N, E]."""
    length = self.config.max_text

    def rows():
      for text in texts:
        ids = self._ids_of(text, length)
        end = np.int32(len(ids) - 1)
        yield np.pad(np.array(ids, np.int32), (0, length - len(ids))), end

    return self._embed(self._text_fn, "text", rows())

  def _embed(self, fn, tower, rows):
    """In batches of one size, so that nothing compiles twice."""
    found = [np.zeros((0, self.config.embedding), np.float32)]
    while batch := list(itertools.islice(rows, ROWS)):
      padded = batch + batch[:1] * (ROWS - len(batch))
      args = map(np.stack, zip(*padded, strict=True))
      found.append(np.asarray(fn(self._params[tower], *args))[: len(batch)])
    return np.concatenate(found)


def _jit(tower):
  return jax.jit(lambda params, *args: tower.apply({"params": params}, *args))


def load(folder) -> ClipScore:
  """The network that `convert --format=clip` wrote.

  Raises:
    UserError: the folder is damaged, or holds something else.
  """
  params, record = weights.load(folder)
  if record.get("network") != "clip":
    raise UserError(f"{folder} has no CLIP: convert one with --format=clip")
  config = clip.from_dict(record["model"])
  wanted = trees.shapes(clip.abstract_params(config))
  trees.check_shapes(trees.shapes(params), wanted, f"the weights in {folder}")
  path = pathlib.Path(folder) / TOKENIZER
  if not path.is_file() or (
    files.digest_file(path) != record["tokenizer_sha256"]
  ):
    raise UserError(f"{path} is not the one that was converted: convert anew")
  ids_of = read_tokenizer(path, config.vocab_size)
  return ClipScore(config, params, ids_of, record["source_sha256"])


def read_tokenizer(path, vocab_size: int) -> Callable[[str, int], list[int]]:
  """Ids of a text, at most so many, the ends of text included.

  Raises:
    UserError: the file is no tokenizer of CLIP, or the package is missing.
  """
  try:
    import tokenizers
  except ImportError as error:
    raise UserError(
      "CLIPScore needs tokenizers: pip install 'goku_jax[text]'"
    ) from error
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library's own, derived from nothing else
    raise UserError(f"{path} is no tokenizer: {error}") from error
  tokenizer.no_truncation()  # which the file may ask for, as for padding
  tokenizer.no_padding()
  begin, end = map(tokenizer.token_to_id, (BEGIN, END))
  if begin is None or end is None:
    raise UserError(f"{path} lacks {BEGIN} or {END}: it is not of CLIP")
  if tokenizer.get_vocab_size() > vocab_size:
    raise UserError(
      f"{path} has {tokenizer.get_vocab_size()} pieces, but the weights only"
      f" {vocab_size}"
    )

  def ids_of(text, length):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [begin, *ids[: length - 2], end]

  return ids_of


def preprocess(image_HWC: np.ndarray, size: int = 224) -> np.ndarray:
  """A uint8 image as the network takes it: float32 [size, size, 3]."""
  _check(image_HWC[None], "an image")
  height, width, _ = image_HWC.shape
  short = min(height, width)
  height, width = size * height // short, size * width // short
  image = PIL.Image.fromarray(image_HWC)
  image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
  top, left = (height - size) // 2, (width - size) // 2
  pixels = np.asarray(image)[top : top + size, left : left + size]
  return (pixels.astype(np.float32) / 255 - MEAN) / STD


def score(cosines: list[np.ndarray], scaling: str) -> float:
  """The score of samples by the cosines [T] of their frames."""
  if scaling not in SCALINGS:
    raise UserError(f"scaling={scaling!r} is not one of {', '.join(SCALINGS)}")
  if not cosines:
    raise UserError("a CLIPScore needs a sample")
  of_frames = [np.asarray(cosine_T, np.float64) for cosine_T in cosines]
  if scaling == "hessel":
    of_frames = [2.5 * np.maximum(cosine_T, 0) for cosine_T in of_frames]
  mean = float(np.mean([np.mean(x_T) for x_T in of_frames]))
  return 100 * max(mean, 0.0) if scaling == "torchmetrics" else mean


def _check(video_THWC, name):
  shape, kind = video_THWC.shape, video_THWC.dtype
  if len(shape) != 4 or shape[-1] != 3 or not video_THWC.size:
    raise UserError(f"{name} is [T, H, W, 3], not {list(shape)}")
  if kind != np.uint8:
    raise UserError(f"{name} has pixels of {kind}, not uint8")
  return video_THWC
