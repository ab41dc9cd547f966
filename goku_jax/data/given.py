"""Given frames: what image-to-video and its kin know of a clip (section 2.5).

A condition is an array [T, H, W, C + 1] beside the latents of a clip: at each
latent frame the latent of the nearest given one at or before it, of the first
given one where there is none, and a last channel that is 1 where the frame is
itself given. Of one given first frame that is the paper's: its latent, repeated
over time. Single frames are encoded as images, runs of 4k+1 frames as clips. A
condition of nothing is zero: text-to-video.

Letters: T H W C of latents.
"""

import numpy as np

from goku_jax.data import hashing
from goku_jax.typing import UserError

_KIND, _LENGTH, _LEVEL, _NOISE = range(-14, -10)  # what a random number is for
KINDS = ("first", "first_last", "run")


def fill(shape, runs=()) -> np.ndarray:
  """The condition of a clip.

  Args:
    shape: (T, H, W, C) of its latents.
    runs: pairs of a place in time and latents [n, H, W, C] that stand there.
  """
  condition = np.zeros((*shape[:3], shape[3] + 1), np.float32)
  if runs:
    runs = sorted(runs, key=lambda run: run[0])
    places = np.concatenate([p + np.arange(len(x)) for p, x in runs])
    latents = np.concatenate([x for _, x in runs])
    after = np.searchsorted(places, np.arange(shape[0]), side="right")
    condition[..., :-1] = latents[np.maximum(after - 1, 0)]
    condition[places, ..., -1] = 1
  return condition


class Given:
  """Draws what is given of each clip in training, by its identity.

  Args:
    seed: of the draws.
    first: share of the clips of which the first frame is given.
    first_last: share with the first and the last frame.
    run: share with a run of frames from the start on, to be continued.
    noise_mean: of the logarithm of the deviation of the noise on what is given
      (CogVideoX, arXiv:2408.06072, appendix D).
    noise_std: of the same logarithm; 0: no noise.

  Raises:
    UserError: a share cannot be.
  """

  def __init__(
    self,
    seed: int,
    *,
    first: float,
    first_last: float,
    run: float,
    noise_mean: float,
    noise_std: float,
  ):
    shares = dict(zip(KINDS, (first, first_last, run), strict=True))
    if min(shares.values()) < 0 or sum(shares.values()) > 1:
      raise UserError(
        f"data.given: the shares {shares} must be 0 or more and sum to 1 at"
        " most; the rest has nothing given"
      )
    if not noise_std >= 0:
      raise UserError(f"data.given.noise_std={noise_std}: set 0 or more")
    self.seed, self._edges = seed, np.cumsum(list(shares.values()))
    self._noise = noise_mean, noise_std

  def draw(self, sample: dict, visit: int) -> np.ndarray:
    """The condition of a sample: `mean`, and `first` and `last` of a clip."""
    mean, who = sample["mean"], (sample["index"], visit)
    if len(mean) == 1:
      return fill(mean.shape)
    kind = int(
      np.searchsorted(self._edges, self._uniform(_KIND, *who), "right")
    )
    if kind == len(KINDS):
      return fill(mean.shape)
    runs = [(0, sample["first"])]
    if KINDS[kind] == "first_last":
      runs.append((len(mean) - 1, sample["last"]))
    elif KINDS[kind] == "run" and len(mean) > 2:  # else one frame is all
      length = 2 + int(self._uniform(_LENGTH, *who) * (len(mean) - 2))
      runs = [(0, mean[:length])]
    return fill(mean.shape, [(p, self._noised(x, p, *who)) for p, x in runs])

  def _uniform(self, purpose, *who):
    return hashing.uniform(self.seed, purpose, *who)[0]

  def _noised(self, latents, place, *who):
    mean, std = self._noise
    if not std:
      return latents
    level = np.exp(mean + std * self._normal(1, _LEVEL, *who)[0])
    noise = self._normal(latents.size, _NOISE, *who, place)
    return latents + (level * noise.reshape(latents.shape)).astype(np.float32)

  def _normal(self, count, *words):
    """Box and Muller's."""
    u, v = hashing.uniform(self.seed, *words, np.arange(2 * count)).reshape(
      2, -1
    )
    return np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)
