"""Figures of reconstructions: equal to those of others, and right by hand."""

import numpy as np
import pytest
from skimage import metrics

from goku_jax.eval import reconstruction


@pytest.fixture(scope="module")
def pair():
  """A clip of noise, and it with more noise."""
  rng = np.random.default_rng(0)
  real = rng.integers(0, 256, (3, 24, 31, 3)).astype(np.uint8)
  made = real + rng.normal(0, 20, real.shape)
  return real, np.clip(made, 0, 255).round().astype(np.uint8)


# Of the same arrays by torchmetrics 1.9.0, in float64: SSIM is the mean of its
# map five pixels from the border, which the paper's windows do not cross.
TORCHMETRICS = {
  "psnr": [22.544980504, 22.426419734, 22.517010283],
  "ssim": [0.964971147, 0.965472243, 0.964497640],
}


@pytest.mark.parametrize("name", TORCHMETRICS)
def test_figures_are_those_of_torchmetrics(pair, name):
  found = reconstruction.frame_figures(*pair)[name]
  np.testing.assert_allclose(found, TORCHMETRICS[name], atol=1e-5)


def test_figures_are_those_of_scikit_image(pair):
  found = reconstruction.frame_figures(*pair)
  psnr = [metrics.peak_signal_noise_ratio(*x) for x in zip(*pair, strict=True)]
  np.testing.assert_allclose(found["psnr"], psnr, atol=1e-5)


def ssim_by_hand(a_HW, b_HW):
  """Wang et al. 2004, equations 13 to 17, window by window."""
  place = np.arange(11) - 5
  line = np.exp(-(place**2) / (2 * 1.5**2))
  w = np.outer(line, line) / line.sum() ** 2
  C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  values = []
  for y in range(a_HW.shape[0] - 10):
    for x in range(a_HW.shape[1] - 10):
      a, b = (v[y : y + 11, x : x + 11].astype(float) for v in (a_HW, b_HW))
      mean_a, mean_b = (w * a).sum(), (w * b).sum()
      var_a, var_b = (
        (w * (a - mean_a) ** 2).sum(),
        (w * (b - mean_b) ** 2).sum(),
      )
      both = (w * (a - mean_a) * (b - mean_b)).sum()
      value = (2 * mean_a * mean_b + C1) * (2 * both + C2)
      value /= (mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2)
      values.append(value)
  return np.mean(values)


def test_ssim_is_that_of_the_paper(pair):
  real, made = pair
  found = reconstruction.frame_figures(*pair)["ssim"]
  by_hand = np.mean(
    [ssim_by_hand(real[0, ..., c], made[0, ..., c]) for c in range(3)]
  )
  np.testing.assert_allclose(found[0], by_hand, atol=1e-6)


def test_a_clip_that_is_met_exactly_has_the_best_figures(pair):
  found = reconstruction.frame_figures(pair[0], pair[0])
  np.testing.assert_allclose(found["psnr"], reconstruction.MAX_PSNR)
  np.testing.assert_allclose(found["ssim"], 1)
  np.testing.assert_array_equal(found["flicker"], [np.nan, 0, 0])


def test_only_an_error_that_changes_flickers():
  real = np.full((5, 4, 4, 3), 100, np.uint8)
  still, moving = real + 7, real.copy()
  moving[1::2] += 2
  flicker = lambda made: reconstruction.frame_figures(real, made)["flicker"]
  np.testing.assert_array_equal(flicker(still)[1:], 0)
  np.testing.assert_array_equal(flicker(moving)[1:], 2)
  moving[::2] -= 3  # it changes its sign
  np.testing.assert_array_equal(flicker(moving)[1:], 5)


def test_a_frame_too_small_for_a_window_has_no_figure_of_it():
  distance = lambda real, made: np.full(len(real), 0.25)
  for side, has in ((1, ""), (10, ""), (11, "ssim"), (16, "ssim lpips")):
    video = np.zeros((2, side, 20, 3), np.uint8)
    found = reconstruction.frame_figures(video, video, distance)
    for name in ("ssim", "lpips"):
      assert np.isfinite(found[name]).all() == (name in has)
    assert np.isfinite(found["psnr"]).all()


def test_lpips_is_left_out_where_nothing_measures_it(pair):
  assert "lpips" not in reconstruction.frame_figures(*pair)


def test_means_are_over_the_frames_that_have_a_figure():
  means = reconstruction.Means(3)
  means.add({"a": [1.0, 2.0, 3.0], "b": [np.nan, 5.0, np.nan]})
  means.add({"a": [7.0], "b": [np.nan]})
  assert means.result() == {
    "a": 13 / 4,
    "a_first": 4.0,
    "a_by_frame": [4.0, 2.0, 3.0],
    "b": 5.0,
    "b_first": None,
    "b_by_frame": [None, 5.0, None],
  }


def test_latents_are_described_over_all_clips():
  rng = np.random.default_rng(0)
  figures = reconstruction.LatentFigures()
  means, logvars = [], []
  for frames in (1, 3, 2):
    mean = 2 * rng.normal(size=(frames, 4, 5, 8)).astype(np.float32)
    mean[..., :2] = 0.05 * mean[..., :2] + 1  # says nothing of the clip
    logvar = rng.normal(size=mean.shape).astype(np.float32)
    figures.add(mean, logvar)
    means.append(mean.reshape(-1, 8).astype(float))
    logvars.append(logvar.reshape(-1, 8).astype(float))
  mean, logvar = np.concatenate(means), np.concatenate(logvars)
  square = mean**2 + np.exp(logvar)
  found = figures.result()
  assert found["mean"] == pytest.approx(mean.mean())
  std = np.sqrt(square.mean() - mean.mean() ** 2)
  assert found["std"] == pytest.approx(std)
  kl = 0.5 * (square - 1 - logvar).mean()
  assert found["kl"] == pytest.approx(kl)
  np.testing.assert_allclose(found["channel_mean"], mean.mean(0))
  std = np.sqrt(square.mean(0) - mean.mean(0) ** 2)
  np.testing.assert_allclose(found["channel_std"], std)
  assert found["dead_channels"] == 2 / 8
