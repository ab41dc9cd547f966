"""Inception gives what torch's does, in the order of the evaluators."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax import files
from goku_jax.convert import formats
from goku_jax.models.judges import inception


def test_features_have_the_published_sizes():
  images = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
  params = inception.abstract_params()
  found = jax.eval_shape(
    inception.Inception().apply, {"params": params}, images
  )
  assert {k: x.shape for k, x in found._asdict().items()} == {
    "pool3": (2, 2048),
    "spatial": (2, 17 * 17 * 7),
    "logits": (2, 1008),
  }


@pytest.mark.parity
def test_torch_gives_the_same(tmp_path):
  import torch

  from goku_jax.bench import torch_inception, torch_weights

  model = torch_weights.make(torch_inception.Inception)
  assert len(model.state_dict()) == 566
  read = formats.FORMATS["inception_fid"].read
  params, other = (
    read(path, files.digest_file(path))[0]
    for path in torch_weights.write(model, tmp_path)
  )
  chex.assert_trees_all_equal(params, other)
  levels = np.random.default_rng(1).integers(0, 256, (2, 299, 299, 3))
  images = (levels.astype(np.float32) - 128) / 128
  found = jax.jit(inception.Inception().apply)({"params": params}, images)
  with torch.no_grad():
    wanted = model(torch.tensor(images).permute(0, 3, 1, 2))
  for name, x, y in zip(found._fields, found, wanted, strict=True):
    error = np.abs(x - y.numpy()).max() / np.abs(y.numpy()).max()
    print(f"{name}: {error:.1e}")
    assert error < 1e-5, name
