"""C3D gives what torch's layers give, out of TGANv2's files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.convert import formats
from goku_jax.eval import judges
from goku_jax.models.judges import c3d
from goku_jax.typing import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Files of random weights, named and shaped as the published ones."""
  rng = np.random.default_rng(0)
  layers, inside = {}, 3
  for name, width in c3d.WIDTHS.items():
    scale = np.sqrt(2 / (27 * inside))
    shape = width, inside, 3, 3, 3
    layers[f"{name}/W"] = scale * rng.standard_normal(shape, "f4")
    inside = width
  for name, inside, width in (
    ("fc6", 512 * 4 * 4, 4096),
    ("fc7", 4096, 4096),
    ("fc8", 4096, 101),
  ):
    scale = np.sqrt(2 / inside)
    layers[f"{name}/W"] = scale * rng.standard_normal((width, inside), "f4")
  for name in [*layers]:
    bias = 0.1 * rng.normal(size=len(layers[name]))
    layers[name.replace("/W", "/b")] = bias
  layers = {name: x.astype(np.float32) for name, x in layers.items()}
  folder = tmp_path_factory.mktemp("c3d")
  np.savez(folder / "conv3d_deepnetA_ucf.npz", **layers)
  mean = rng.uniform(80, 120, (1, 3, 16, 128, 171)).astype(np.float32)
  np.savez(folder / "mean2.npz", mean=mean)
  return folder / "conv3d_deepnetA_ucf.npz"


def theirs(source, clips_NTHWC):
  """TGANv2's computation by torch's functions, of pixels in [-1, 1]."""
  import torch
  from torch.nn import functional as F

  with np.load(source) as file:
    w = {name: torch.tensor(x) for name, x in file.items()}
  with np.load(source.with_name("mean2.npz")) as file:
    mean = torch.tensor(file["mean"])[..., 8:120, 8:120]
  x = torch.tensor(clips_NTHWC).permute(0, 4, 1, 2, 3)
  x = 128 * x[:, [2, 1, 0]]
  N, C, T, H, W = x.shape
  x = x.transpose(1, 2).reshape(N * T, C, H, W)
  x = F.interpolate(x, (112, 112), mode="bilinear", align_corners=True)
  x = x.reshape(N, T, C, 112, 112).transpose(1, 2) + (128 - mean)
  pool = lambda x, t: F.max_pool3d(x, (t, 2, 2), ceil_mode=True)
  for name in c3d.WIDTHS:
    if name in c3d.POOLS:
      x = pool(x, c3d.POOLS[name])
    x = F.relu(F.conv3d(x, w[f"{name}/W"], w[f"{name}/b"], padding=1))
  x = pool(x, 2).flatten(1)
  for name in ("fc6", "fc7"):
    x = F.relu(F.linear(x, w[f"{name}/W"], w[f"{name}/b"]))
  return F.linear(x, w["fc8/W"], w["fc8/b"]).numpy()


@pytest.mark.parity
def test_torch_gives_the_same(source, tmp_path):
  formats.convert(source, "c3d", tmp_path, reverse=False)
  rng = np.random.default_rng(1)
  clips = rng.integers(0, 256, (1, 16, 60, 80, 3), dtype=np.uint8)
  judge = judges.load_c3d(tmp_path)
  found = judge.read(clips)["logits"]
  wanted = theirs(source, clips.astype(np.float32) / 127.5 - 1)
  error = np.abs(found - wanted).max() / np.abs(wanted).max()
  print(f"{error:.1e}")
  assert error < 1e-5
  assert judge.about["network"] == "c3d"
  assert len(judge.about["weights"]) == 64


def test_clips_of_other_than_sixteen_frames_are_refused():
  clips = jax.ShapeDtypeStruct((1, 17, 112, 112, 3), jnp.float32)
  params = {"params": c3d.abstract_params()}
  with pytest.raises(UserError, match="of 17 frames: C3D takes 16"):
    jax.eval_shape(c3d.C3D().apply, params, clips)


def test_the_mean_clip_belongs_to_the_weights(source, tmp_path):
  path = tmp_path / source.name
  with pytest.raises(UserError, match=r"be conv3d_deepnetA_ucf\.npz, which"):
    formats.FORMATS["c3d"].read(path)
  path.symlink_to(source)
  with pytest.raises(UserError, match=r"mean2\.npz: No such file .* should be"):
    formats.FORMATS["c3d"].read(path)
  mean = path.with_name("mean2.npz")
  np.savez(mean, mean=np.zeros((3, 16, 112, 112), np.float32))
  with pytest.raises(UserError, match="has no finite mean of shape"):
    formats.FORMATS["c3d"].read(path)
  mean.write_bytes(b"PK")
  with pytest.raises(UserError, match="cut short or holds more than arrays"):
    formats.FORMATS["c3d"].read(path)
