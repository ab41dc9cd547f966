"""The causal convolution and the norm of single frames."""

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
  layer = vae_layers.FrameNorm(groups=4)
  params = make(layer)
  out = layer.apply({"params": params}, X)
  plain = ((out - params["bias"]) / params["scale"]).reshape(2, 5, 24, 4, 4)
  np.testing.assert_allclose(plain.mean((2, 4)), 0, atol=1e-4)
  np.testing.assert_allclose(plain.std((2, 4)), 1, atol=1e-3)


def test_frame_norm_of_a_frame_ignores_the_others():
  layer = vae_layers.FrameNorm()
  params = {"params": make(layer)}
  louder = X.at[:, 1:].multiply(50.0)
  np.testing.assert_array_equal(
    layer.apply(params, louder)[:, 0], layer.apply(params, X)[:, 0]
  )


def test_a_constant_frame_is_finite():
  layer = vae_layers.FrameNorm()
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
