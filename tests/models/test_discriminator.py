"""The discriminator judges clips and images, and may be kept from steep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models.discriminator import KERNEL, Discriminator

SIZES = dict(width=8, num_layers=2)


def make(video, **more):
  model = Discriminator(**SIZES, **more)
  return model, jax.jit(model.init)(jax.random.key(0), video)


@pytest.mark.slow
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_clips_and_images_are_judged_by_the_same_weights(spectral_norm):
  video = jax.random.normal(jax.random.key(1), (2, 5, 16, 24, 3))
  model, variables = make(video, spectral_norm=spectral_norm)
  assert model.apply(variables, video).shape == (2, 2, 4, 6)
  assert model.apply(variables, video[:, :1]).shape == (2, 1, 4, 6)
  norms = [name for name in variables["params"] if "norm" in name]
  assert norms == ([] if spectral_norm else ["norm_1", "norm_2"])


def test_a_sample_has_the_same_score_in_any_batch():
  video = jax.random.normal(jax.random.key(1), (3, 5, 16, 16, 3))
  model, variables = make(video)
  whole = jax.jit(model.apply)(variables, video)
  alone = jax.jit(model.apply)(variables, video[1:2])
  np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)


@pytest.mark.slow
def test_spectral_norm_takes_the_size_out_of_weights():
  video = jax.random.normal(jax.random.key(1), (1, 5, 16, 16, 3))
  model, variables = make(video, spectral_norm=True)
  kernel = variables["params"]["conv_0"]["kernel"]
  assert kernel.shape == (*KERNEL, 3, 8)
  large = jax.tree.map(
    lambda x: 7 * x if x.ndim > 1 else x, variables
  )  # biases are zeros
  scores = jax.jit(model.apply)(variables, video)
  np.testing.assert_allclose(model.apply(large, video), scores, rtol=1e-4)
  steep = jax.grad(lambda x: model.apply(variables, x).sum())(video)
  assert jnp.abs(steep).max() > 0
