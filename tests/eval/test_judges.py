"""Networks read each image alone; VGG16 in ImageNet's units, as torch's."""

import pathlib
import runpy

import numpy as np
import pytest

from goku_jax import weights
from goku_jax.eval import judges
from goku_jax.typing import UserError

SCRIPT = runpy.run_path(
  str(pathlib.Path(__file__).parents[1] / "golden" / "lpips.py")
)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Random weights."""
  path = tmp_path_factory.mktemp("vgg")
  weights.save(path, SCRIPT["params"](), {"network": "lpips_vgg16"})
  return path


@pytest.fixture(scope="module")
def features_of(folder):
  return reads(folder)


def reads(folder):
  judge = judges.load_vgg(folder)
  return lambda images: judge.read(images)["features"]


def images(n, *sides, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, *sides, 3), np.uint8)


def reference(tree, images_NHWC) -> np.ndarray:
  """By torch's convolutions."""
  import torch

  units = (images_NHWC.astype(np.float32) / 255 - MEAN) / STD
  x = torch.tensor(units.transpose(0, 3, 1, 2))
  *_, last = SCRIPT["levels"](tree["vgg"], x)
  return last.mean((2, 3)).numpy()


def test_an_image_is_read_alone_in_batches_of_any_number(features_of):
  x = images(judges.IMAGES + 1, 16, 16)
  found = features_of(x)
  assert found.shape == (judges.IMAGES + 1, 512)
  assert found.dtype == np.float32
  for i in (0, judges.IMAGES):
    alone = features_of(x[i : i + 1])
    np.testing.assert_allclose(found[i], alone[0], rtol=1e-5, atol=1e-5)
  assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("sides", [(16, 16), (40, 65)])
def test_torch_gives_the_same(features_of, sides):
  x = images(3, *sides)
  expected = reference(SCRIPT["params"](), x)
  error = np.abs(features_of(x) - expected).max() / np.abs(expected).max()
  print(f"relative error {error:.1e}")
  assert error < 1e-5


@pytest.mark.parametrize(
  ("bad", "says"),
  [
    (images(2, 15, 16), "16 pixels a side or more"),
    (images(2, 16, 16)[..., :1], r"uint8 \[2, 16, 16, 1\], not uint8 of three"),
    (np.zeros((1, 16, 16, 3), np.float32), "are float32 .* not uint8 of"),
  ],
)
def test_other_images_are_refused(features_of, bad, says):
  with pytest.raises(UserError, match=says):
    features_of(bad)


def test_the_weights_of_another_network_are_refused(tmp_path):
  tree = SCRIPT["params"]()
  del tree["vgg"]["conv_12"]
  weights.save(tmp_path, tree, {"network": "lpips_vgg16"})
  with pytest.raises(UserError, match=r"2 missing \(vgg/conv_12/bias\)"):
    judges.load_vgg(tmp_path)
  with pytest.raises(UserError, match="of lpips_vgg16, not of inception_fid"):
    judges.load_inception(tmp_path)
  with pytest.raises(UserError, match=r"no weights of i3d\. Bring i3d_pretr"):
    judges.load_i3d(tmp_path / "none", "half_pixel")


def frechet(one, two):
  """Of features that vary on their own: enough to order corruptions."""
  gap = np.square(one.mean(0) - two.mean(0)).sum()
  return gap + np.square(one.std(0) - two.std(0)).sum()


def film(path):
  """Sixteen frames [N, 48, 80, 3] of a real film."""
  import av

  with av.open(str(path)) as container:
    frames = container.decode(video=0)
    kept = [
      frame.reformat(80, 48, "rgb24").to_ndarray()
      for i, frame in enumerate(frames)
      if i % 8 == 0
    ]
  return np.stack(kept[:16])


@pytest.mark.slow
def test_real_weights_tell_a_film_from_its_corruptions(
  lpips_weights, real_videos
):
  """Half is near the other half; more noise, a coarser mosaic are farther."""
  features_of = reads(lpips_weights)
  x = film(real_videos["bikes"])
  rng = np.random.default_rng(0)
  noise = rng.standard_normal(x.shape)
  noisy = lambda s: np.clip(x + s * noise, 0, 255).astype(np.uint8)
  mosaic = lambda n: x[:, ::n, ::n].repeat(n, 1).repeat(n, 2)
  found = features_of(x)
  distance = lambda y: frechet(found, features_of(y))
  half = frechet(found[::2], found[1::2])
  by_noise = [distance(noisy(s)) for s in (5, 20, 80)]
  by_mosaic = [distance(mosaic(n)) for n in (2, 4, 8)]
  print(half, by_noise, by_mosaic)
  assert half < by_noise[1] < by_noise[2]
  assert by_noise[0] < by_noise[1]
  assert half < by_mosaic[0] < by_mosaic[1] < by_mosaic[2]


@pytest.mark.slow
@pytest.mark.parity
def test_real_weights_give_in_torch_the_same(lpips_weights, real_videos):
  tree, _ = weights.load(lpips_weights)
  x = film(real_videos["bikes"])[:4]
  expected = reference(tree, x)
  found = reads(lpips_weights)(x)
  error = np.abs(found - expected).max() / np.abs(expected).max()
  print(f"relative error {error:.1e}")
  assert error < 1e-5
