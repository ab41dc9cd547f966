"""How far what an arm draws is from real digits: one judge for all arms.

Letters: N samples.
"""

import functools
import time

import numpy as np

from goku_jax.eval import digit_distances, digits, digits_suite
from goku_jax.sample import codec as codecs
from goku_jax.sample import draw

SEED = 0  # of the judge and of all noise, whatever an arm's seed


class Asked:
  """Images by class, or clips by caption: what to draw, and what is real.

  Args:
    is_images: which of the two.
    num: samples that are drawn, and real ones.
    canvas: pixels of a side.
    num_frames: of a sample.
  """

  def __init__(self, is_images: bool, num: int, canvas: int, num_frames: int):
    self.is_images, self.num, self.canvas = is_images, num, canvas
    self.num_frames = num_frames
    self.judge = digits.train_judge(SEED, canvas=canvas)
    self._train = digit_distances.training(self.judge, canvas)
    if is_images:
      self.asked = [("", i % 10, -1, np.nan) for i in range(num)]
    else:
      self.asked = digits_suite.requests(num, "train")
    self.real = self._read(*self._real(seed=1))

  def _real(self, seed):
    return digits_suite.real_samples(
      self.num,
      self.num_frames,
      self.canvas,
      seed=seed,
      image_share=float(self.is_images),
    )

  def _read(self, videos, asked):
    return digit_distances.read(self.judge, videos, asked)

  def draw(self, run, calls: int, solver: str | None = None):
    """What a model draws without guidance, and seconds a sample.

    The autoencoder's are not among them, nor those of the first packs, which
    compile.
    """
    captions, labels = ([a[i] for a in self.asked] for i in (0, 1))
    done = [(0, time.perf_counter())]
    videos = draw.draw(
      run,
      captions,
      labels=labels if self.is_images else None,
      num_frames=self.num_frames,
      size=(self.canvas, self.canvas),
      num_steps=calls // 2 if solver == "heun" else calls,
      guidance_scale=1.0,
      seed=SEED,
      solver=solver,
      progress=lambda number: done.append((number, time.perf_counter())),
    )
    (before, began), (number, ended) = done[len(done) > 2], done[-1]
    return videos, (ended - began) / (number - before)

  def figures(self, videos, asked=None) -> dict:
    """Distances and hits of samples."""
    asked = asked or self.asked
    made = self._read(videos, asked)
    found = digit_distances.compare(self._train, self.real, made)
    scores = digits_suite.judge_set(self.judge, videos, asked)
    hits = ("digit_accuracy", "readable")
    hits += () if self.is_images else ("direction_accuracy",)
    return found | {name: scores[name] for name in hits}

  def floors(self, codec: codecs.Codec) -> dict:
    """The same of other real samples, and of those through the autoencoder."""
    videos, asked = self._real(seed=2)
    found = {"real": self.figures(videos, asked)}
    if codec.model:
      decoded = digits_suite.reconstruct(codec, videos)
      found["reconstructed"] = self.figures(decoded, asked)
    return found


@functools.cache
def ask(*args) -> Asked:
  """`Asked`, whose judge is trained once."""
  return Asked(*args)
