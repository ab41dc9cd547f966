"""Norms and time features, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import layers

X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32) + 2


def test_layer_norm_has_mean_zero_and_variance_one():
  expected = (X - X.mean(-1, keepdims=True)) / X.std(-1, keepdims=True)
  np.testing.assert_allclose(
    layers.layer_norm(jnp.asarray(X)), expected, atol=1e-4
  )


def test_norms_of_zeros_are_zeros_with_finite_gradients():
  zeros = jnp.zeros((1, 8))
  norm = layers.RMSNorm()
  params = norm.init(jax.random.key(0), zeros)
  for fn in (layers.layer_norm, lambda x: norm.apply(params, x)):
    assert (np.asarray(fn(zeros)) == 0).all()
    assert np.isfinite(jax.jacobian(fn)(zeros)).all()


def test_rms_norm_divides_by_the_root_mean_square_and_scales():
  scale = np.arange(8.0, dtype=np.float32)
  out = layers.RMSNorm().apply({"params": {"scale": scale}}, jnp.asarray(X))
  root = np.sqrt(np.mean(X**2, -1, keepdims=True))
  np.testing.assert_allclose(out, X / root * scale, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_are_float32_whatever_comes_in(dtype):
  x = jnp.full((1, 8), 300.0, dtype).at[0, 0].set(0)  # 300^2 overflows float16
  norm = layers.RMSNorm()
  out = norm.apply(norm.init(jax.random.key(0), x), x)
  assert out.dtype == layers.layer_norm(x).dtype == jnp.float32
  np.testing.assert_allclose(np.mean(np.square(out)), 1, rtol=1e-3)


def test_modulation_at_zero_is_the_identity():
  zero = jnp.zeros_like(X)
  np.testing.assert_array_equal(layers.modulate(X, zero, zero), X)


@pytest.mark.parametrize("width", [32, 256])
def test_time_features_are_cosines_then_sines_of_falling_frequencies(width):
  t = np.array([0.0, 0.25, 0.999, 1.0], np.float32)
  half = width // 2
  frequency = 1e4 ** (-np.arange(half) / (half - 1))
  angle = 1000 * np.float64(t)[:, None] * frequency
  expected = np.concatenate([np.cos(angle), np.sin(angle)], -1)
  out = layers.timestep_features(jnp.asarray(t), width)
  np.testing.assert_allclose(out, expected, atol=1e-3)  # angles reach 1000
  np.testing.assert_array_equal(out[0], np.repeat([1, 0], half))


def test_the_mlp_uses_the_tanh_approximation():
  x = jnp.linspace(-3, 3, 8)[None]
  mlp = layers.Mlp(8)
  eye = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
  out = mlp.apply({"params": {"up": eye, "down": eye}}, x)
  inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
  np.testing.assert_allclose(out, x / 2 * (1 + np.tanh(inner)), atol=1e-6)
