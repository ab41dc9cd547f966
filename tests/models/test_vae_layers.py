"""Causal convolutions, norms, and what changes the size of a frame."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.models import vae_layers

X = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 4, 6, 16))


def make(layer):
  variables = layer.init(jax.random.key(1), X)
  noise = lambda x: x + jax.random.normal(jax.random.key(2), x.shape)
  return jax.tree.map(noise, variables["params"])


def test_the_convolution_is_the_3d_one_with_the_first_frame_repeated():
  layer = vae_layers.CausalConv(8)
  params = make(layer)
  padded = jnp.concatenate([X[:, :1], X[:, :1], X], 1)
  expected = jax.lax.conv_general_dilated(
    padded,
    params["kernel"],
    (1, 1, 1),
    [(0, 0), (1, 1), (1, 1)],
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  out = layer.apply({"params": params}, X)
  np.testing.assert_allclose(
    out, expected + params["bias"], rtol=0, atol=1e-5 * np.abs(expected).max()
  )


def test_frame_norm_groups_channels_of_one_frame():
  layer = vae_layers.GroupNorm(groups=4)
  params = make(layer)
  out = layer.apply({"params": params}, X)
  plain = ((out - params["bias"]) / params["scale"]).reshape(2, 5, 24, 4, 4)
  np.testing.assert_allclose(plain.mean((2, 4)), 0, atol=1e-4)
  np.testing.assert_allclose(plain.std((2, 4)), 1, atol=1e-3)


def test_frame_norm_of_a_frame_ignores_the_others():
  layer = vae_layers.GroupNorm(groups=8)
  params = {"params": make(layer)}
  louder = X.at[:, 1:].multiply(50.0)
  np.testing.assert_array_equal(
    layer.apply(params, louder)[:, 0], layer.apply(params, X)[:, 0]
  )


def test_a_constant_frame_is_finite():
  layer = vae_layers.GroupNorm(groups=8)
  params = make(layer)
  apply = lambda x: layer.apply({"params": params}, x).sum()
  assert np.isfinite(jax.grad(apply)(jnp.ones_like(X))).all()


def test_only_the_last_two_frames_are_carried_on():
  layer = vae_layers.CausalConv(8)
  params = {"params": make(layer)}
  for length in (1, 2, 5):
    _, state = layer.apply(params, X[:, :length], mutable=["context"])
    frames = state["context"]["frames"]
    assert frames.shape == (2, 2, 4, 6, 16)
    np.testing.assert_array_equal(frames[:, -1], X[:, length - 1])


def test_group_norm_takes_all_frames_together():
  layer = vae_layers.GroupNorm(groups=4, per_frame=False)
  params = make(layer)
  out = layer.apply({"params": params}, X)
  plain = ((out - params["bias"]) / params["scale"]).reshape(2, 5, 24, 4, 4)
  np.testing.assert_allclose(plain.mean((1, 2, 4)), 0, atol=1e-4)
  np.testing.assert_allclose(plain.std((1, 2, 4)), 1, atol=1e-3)


def test_a_spatial_norm_starts_as_the_plain_one():
  norm = functools.partial(vae_layers.GroupNorm, 4)
  layer = vae_layers.SpatialNorm(norm, is_first=True)
  latents = jax.random.normal(jax.random.key(3), (2, 3, 2, 3, 5))
  out, _ = layer.init_with_output(jax.random.key(1), X, latents)
  plain, _ = norm().init_with_output(jax.random.key(1), X)
  np.testing.assert_array_equal(out, plain)


def test_nearest_repeats_all_frames_but_the_first():
  x = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
  first = vae_layers.resize_nearest(x, (1, 5, 2, 3, 1), is_first=True)
  assert first.shape == (1, 5, 2, 3, 1)
  assert first[0, :, 1, 2, 0].tolist() == [0, 1, 1, 2, 2]
  later = vae_layers.resize_nearest(x, (1, 6, 1, 1, 1), is_first=False)
  assert later.ravel().tolist() == [0, 0, 1, 1, 2, 2]


def test_downsampling_keeps_the_first_frame_apart():
  """And an image takes the way of a first frame."""
  layer = vae_layers.Downsample(in_time=True)
  variables = layer.init(jax.random.key(1), X, True)
  out = layer.apply(variables, X, True)
  pairs = jnp.stack([X[:, 0], X[:, 1:3].mean(1), X[:, 3:].mean(1)], 1)
  plain = vae_layers.Downsample(in_time=False)
  np.testing.assert_allclose(out, plain.apply(variables, pairs, True), 1e-5)
  image = layer.apply(variables, X[:, :1], True)
  np.testing.assert_allclose(image, out[:, :1], rtol=1e-5, atol=1e-6)


def test_upsampling_doubles_all_frames_but_the_first():
  layer = vae_layers.Upsample(in_time=True)
  variables = layer.init(jax.random.key(1), X, True)
  out = layer.apply(variables, X, True)
  assert out.shape == (2, 9, 8, 12, 16)
  np.testing.assert_array_equal(out[:, 1::2], out[:, 2::2])
  later = layer.apply(variables, X[:, 1:], False)
  np.testing.assert_allclose(out[:, 1:], later, rtol=1e-5, atol=1e-6)
