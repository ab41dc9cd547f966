"""Pools by slices are those of windows, whatever the backend."""

import chex
import flax.linen as nn
import jax
import pytest

from goku_jax.models.judges import layers

WINDOWS = [
  ((2, 9, 8, 3), (3, 3), (2, 2), "VALID"),
  ((2, 8, 9, 3), (3, 3), None, "SAME"),
  ((1, 5, 7, 6, 3), (3, 3, 3), (2, 2, 2), "SAME"),
  ((1, 4, 8, 7, 3), (1, 3, 3), (1, 2, 2), "SAME"),
  ((1, 4, 6, 5, 3), (2, 2, 2), (2, 2, 2), "SAME"),
]


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), WINDOWS)
def test_the_largest_of_slices_is_that_of_the_window(
  shape, window, strides, padding
):
  x = jax.random.normal(jax.random.key(0), shape) - 3  # below the zeros of pads
  found = layers.max_pool(x, window, strides, padding)
  chex.assert_trees_all_equal(found, nn.max_pool(x, window, strides, padding))


@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (1, 1, 4, 2)])
def test_means_leave_out_what_lies_beyond_the_sides(shape):
  x = jax.random.normal(jax.random.key(0), shape)
  found = layers.mean_pool(x, (3, 3))
  wanted = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
  chex.assert_trees_all_close(found, wanted, atol=1e-6)


@pytest.mark.parametrize("window", [(1, 1), (1, 1, 1)])
def test_a_window_of_one_position_is_a_product(window):
  unit = layers.ConvUnit(4, window, bn_eps=1e-3)
  x = jax.random.normal(jax.random.key(0), (2, *(5,) * len(window), 3))
  found, variables = unit.init_with_output(jax.random.key(1), x)
  kernel = variables["params"]["kernel"]
  assert kernel.shape == (*window, 3, 4)
  wanted = nn.relu(x @ kernel.reshape(3, 4) / (1 + 1e-3) ** 0.5)
  chex.assert_trees_all_close(found, wanted, atol=1e-5)
