"""I3D gives what torch's does, and refuses clips too short for it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax import files
from goku_jax.convert import formats
from goku_jax.models.judges import i3d
from goku_jax.typing import UserError


def logits_of(num_frames):
  clips = jax.ShapeDtypeStruct((2, num_frames, 224, 224, 3), jnp.float32)
  model = i3d.I3D(bn_eps=1e-5)
  return jax.eval_shape(model.apply, {"params": i3d.abstract_params()}, clips)


@pytest.mark.parametrize("num_frames", [10, 17])
def test_time_is_averaged_over(num_frames):
  assert logits_of(num_frames).shape == (2, 400)


def test_clips_of_fewer_than_ten_frames_are_refused():
  with pytest.raises(UserError, match="of 9 frames: I3D takes 10 or more"):
    logits_of(9)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  """torch's, and parameters and config that came out of its files."""
  from goku_jax.bench import torch_i3d, torch_weights

  theirs = torch_weights.make(torch_i3d.I3D)
  assert len(theirs.state_dict()) == 344
  paths = torch_weights.write(theirs, tmp_path_factory.mktemp("i3d"))
  digests = map(files.digest_file, paths)
  (params, config), other = map(formats.FORMATS["i3d"].read, paths, digests)
  chex.assert_trees_all_equal(params, other[0])
  return theirs, params, config


@pytest.mark.parity
@pytest.mark.parametrize("num_frames", [10, 16])
def test_torch_gives_the_same(num_frames, networks):
  import torch

  theirs, params, config = networks
  rng = np.random.default_rng(num_frames)
  clips = rng.uniform(-1, 1, (1, num_frames, 224, 224, 3)).astype(np.float32)
  model = i3d.I3D(bn_eps=config["bn_eps"])
  found = jax.jit(model.apply)({"params": params}, clips)
  with torch.no_grad():
    wanted = theirs(torch.tensor(clips).permute(0, 4, 1, 2, 3)).numpy()
  error = np.abs(found - wanted).max() / np.abs(wanted).max()
  print(f"{num_frames} frames: {error:.1e}")
  assert error < 1e-5
