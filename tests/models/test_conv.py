"""Every form of the convolution is the same sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import conv
from tests import runs


@pytest.mark.parametrize("taps", [1, 3, 7])
def test_any_number_of_taps_is_one_sum(taps):
  x = jax.random.normal(jax.random.key(0), (1, 9, 6, 7, 3))
  kernel = jax.random.normal(jax.random.key(1), (taps, 3, 3, 3, 2))
  for stride in (1, 2):
    got = conv.sum_of_planes(x, kernel, stride, precision="highest")
    wanted = conv.volume(x, kernel, stride, precision="highest")
    assert got.shape[1] == -(-(10 - taps) // stride)
    runs.assert_near(got, wanted, 1e-5)


@pytest.mark.parametrize("side", [3, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 3, 2, 2, 1), (2, 5, 4, 7, 3)])
def test_the_sum_of_planes_is_the_volume(shape, stride, side):
  x = jax.random.normal(jax.random.key(0), shape)
  kernel = jax.random.normal(jax.random.key(1), (3, side, side, shape[-1], 2))

  def run(fn):
    forward = lambda x, kernel: fn(x, kernel, stride)
    loss = lambda x, kernel: jnp.sum(jnp.sin(forward(x, kernel)))
    return forward(x, kernel), jax.grad(loss, (0, 1))(x, kernel)

  runs.assert_near(run(conv.sum_of_planes), run(conv.volume), 1e-5)


def test_a_cpu_computes_the_sum_of_planes():
  x, kernel = jnp.ones((1, 3, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 1))
  program = jax.jit(conv.conv3d).lower(x, kernel).compile().as_text()
  assert program.count(" convolution(") == 3
  np.testing.assert_array_equal(conv.conv3d(x, kernel)[0, 0, 1, 1], [54.0])
