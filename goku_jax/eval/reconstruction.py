"""How near a reconstruction is to its clip: figures of frames, and a page.

Pixels are uint8, 0 to 255, as a file has them: what a decoder gives is clipped
and rounded first. With the error e = reconstruction - clip,

  PSNR     10 log10(255^2 / mean(e^2)) of a frame, in dB; 100 where e = 0
  SSIM     of a frame (Wang et al. 2004): a Gaussian window of 11 pixels,
           sigma 1.5, population variances, K = 0.01 and 0.03, the mean over
           pixels whose window lies inside and over colours
  LPIPS    of a frame, by a network that is given
  flicker  mean |e_t - e_(t-1)| over the pixels of a frame and the one before:
           error that stands still does not flicker

A figure is the mean over all frames that have it: the first frame of a clip
has no flicker, one with a side below 11 pixels no SSIM and below 16 no LPIPS.

Letters: T frames, H W height and width, C = 3 channels.
"""

import numpy as np

from goku_jax.data import shards
from goku_jax.models.judges.lpips import MIN_SIDE
from goku_jax.typing import UserError

MAX_PSNR = 100.0  # dB
DEAD = 0.01  # variance of a posterior mean, or less
_SSIM_SIDE = 11  # of the window


def frame_figures(real_THWC, made_THWC, lpips_fn=None) -> dict:
  """Figures [T] of each frame of a uint8 clip, NaN where a frame has none.

  Args:
    real_THWC: the clip.
    made_THWC: its reconstruction.
    lpips_fn: distances [T] of two such clips; None leaves LPIPS out.
  """
  T, H, W, _ = real_THWC.shape
  error = made_THWC.astype(np.float32) - real_THWC
  mse_T = np.square(error).mean((1, 2, 3), dtype=np.float64)
  floor = 255**2 / 10 ** (MAX_PSNR / 10)
  figures = {
    "psnr": 10 * np.log10(255**2 / np.maximum(mse_T, floor)),
    "ssim": np.full(T, np.nan),
    "flicker": np.full(T, np.nan),
  }
  figures["flicker"][1:] = np.abs(np.diff(error, axis=0)).mean((1, 2, 3))
  if min(H, W) >= _SSIM_SIDE:
    figures["ssim"] = _ssim(real_THWC, made_THWC)
  if lpips_fn:
    large = min(H, W) >= MIN_SIDE
    none = np.full(T, np.nan)
    figures["lpips"] = lpips_fn(real_THWC, made_THWC) if large else none
  return figures


def _ssim(real_THWC, made_THWC):
  try:
    from skimage.metrics import structural_similarity  # slow to import
  except ImportError as error:
    raise UserError(
      "SSIM needs scikit-image: pip install 'goku_jax[eval]'"
    ) from error
  return [
    structural_similarity(
      real,
      made,
      data_range=255,
      channel_axis=-1,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
    )
    for real, made in zip(real_THWC, made_THWC, strict=True)
  ]


class Means:
  """Running means of figures, by the frame's place in its clip."""

  def __init__(self, num_frames: int):
    self._num_frames = num_frames
    self._sums = {}  # name to sums and counts [2, T]

  def add(self, figures: dict):
    """Counts the frames of a clip that have a figure."""
    for name, value_T in figures.items():
      value_T = np.asarray(value_T)
      zeros = np.zeros((2, self._num_frames))
      has_T = np.isfinite(value_T)
      sums = self._sums.setdefault(name, zeros)
      sums[:, : len(value_T)] += np.where(has_T, value_T, 0), has_T

  def result(self) -> dict:
    """Of each figure the mean, that of first frames, and of all by place.

    None (null in JSON) where no frame has the figure.
    """
    found = {}
    for name, sums in self._sums.items():
      by_frame = [_ratio(*pair) for pair in sums.T]
      found[name] = _ratio(*sums.sum(1))
      found[f"{name}_first"] = by_frame[0]
      found[f"{name}_by_frame"] = by_frame
    return found


def _ratio(total, count) -> float | None:
  return float(total / count) if count else None


class LatentFigures:
  """Running figures of latents, over all positions of all clips.

  A channel is dead where the variance of its posterior mean over the data is
  at most 0.01 (Burda et al. 2016, arXiv:1509.00519, section 3): what it holds
  does not depend on the clip.
  """

  def __init__(self):
    self._drawn, self._means = shards.Moments(), shards.Moments()
    self._kl = self._count = 0

  def add(self, mean_tHWc: np.ndarray, logvar_tHWc: np.ndarray):
    """Counts the latents of a clip."""
    self._drawn.add(mean_tHWc, logvar_tHWc)
    self._means.add(mean_tHWc, np.full_like(mean_tHWc, -np.inf))
    mean, logvar = mean_tHWc.astype(np.float64), logvar_tHWc.astype(np.float64)
    kl = 0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar)
    self._kl, self._count = self._kl + kl.sum(), self._count + kl.size

  def result(self) -> dict:
    """Moments of what the posteriors draw, KL in nats a number, dead share."""
    mean, std = self._drawn.mean, self._drawn.std
    variance = (np.square(std) + np.square(mean)).mean() - mean.mean() ** 2
    return {
      "mean": float(mean.mean()),
      "std": float(np.sqrt(variance)),
      "kl": float(self._kl / self._count),
      "dead_channels": float((np.square(self._means.std) <= DEAD).mean()),
      "channel_mean": mean.tolist(),
      "channel_std": std.tolist(),
    }


CODERS = {
  "autoencoder": "autoencoder",
  "whole": "autoencoder, whole frames",
  "linear": "linear coder (PCA)",
}
_COLUMNS = {
  "psnr": ("PSNR, dB", ".2f"),
  "ssim": ("SSIM", ".4f"),
  "lpips": ("LPIPS", ".4f"),
  "flicker": ("flicker", ".3f"),
}


def report_markdown(result: dict) -> str:
  """The figures as a page.

  Args:
    result: for each name in CODERS what `Means.result` returned, if it was
      measured; `latents` as of `LatentFigures.result`; `num_clips`,
      `num_trimmed`, `settings`, and `tile_psnr` where tiles were measured.
  """
  figures = [(name, "") for name in _COLUMNS]
  figures += [(name, "_first") for name in _COLUMNS if name != "flicker"]
  heads = [
    _COLUMNS[name][0] + (", first frame" if first else "")
    for name, first in figures
  ]
  table = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
  for coder, words in CODERS.items():
    if coder in result:
      cells = [
        _shown(result[coder].get(name + first), _COLUMNS[name][1])
        for name, first in figures
      ]
      table.append(f"| {words} | {' | '.join(cells)} |")
  latents = result["latents"]
  by_frame = result["autoencoder"]["psnr_by_frame"]
  lines = [
    "# How near are reconstructions?",
    "",
    *table,
    "",
    *_notes(result),
    "",
    "PSNR by frame: " + " ".join(_shown(x, ".2f") for x in by_frame),
    "",
    f"Latents: mean {latents['mean']:.4f}, deviation {latents['std']:.4f}, KL"
    f" {latents['kl']:.4f} nats a number,"
    f" {100 * latents['dead_channels']:.1f} % of"
    f" {len(latents['channel_mean'])} channels dead.",
    "",
    "Settings: " + ", ".join(f"{k}={v}" for k, v in result["settings"].items()),
  ]
  return "\n".join(lines) + _EXPLANATION


def _notes(result):
  """What was measured, and what was not."""
  yield f"{result['num_clips']} clips of {result['num_frames']} frames in all."
  if result["num_trimmed"]:
    yield (
      f"{result['num_trimmed']} clips lost frames at their end, since their"
      " number was not one more than a multiple of the stride."
    )
  if "tile_psnr" in result:
    yield (
      f"Tiles are {result['tile_psnr']:.2f} dB from whole frames (PSNR of one"
      " reconstruction against the other)."
    )
  if "lpips" not in result["autoencoder"]:
    yield "LPIPS was not measured: no weights of its network were given."
  if "linear" not in result:
    yield "No linear coder stands beside: --fit=FOLDER of training clips does."


_EXPLANATION = """

How to read it. Figures are means over frames, of pixels rounded to 0 to 255.
Flicker is the mean absolute difference, in levels of 255, between the errors of
a pixel in one frame and in the frame before. The linear coder turns blocks of
the autoencoder's stride into as many numbers as a latent has channels, the best
that a linear map can do on the clips it was fitted to. A channel is dead where
the variance of its posterior mean is at most 0.01. strip.png shows clips, their
reconstructions, and the difference.
"""


def _shown(value: float | None, form: str) -> str:
  return "-" if value is None else format(value, form)
