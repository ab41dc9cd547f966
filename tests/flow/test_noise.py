"""Draws belong to samples, wherever those are packed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.flow import noise

RNG = jax.random.key(0)
GRID = np.stack(
  np.meshgrid(*map(np.arange, (2, 2, 3)), indexing="ij"), -1
).reshape(-1, 3)


def draw(index, visit, purpose=noise.NOISE, rng=RNG):
  """Noise of samples on GRID, each in the pack and column it is given at."""
  index, visit = jnp.array(index), jnp.array(visit)
  B, G = index.shape
  keys = noise.sample_keys(rng, purpose, index, visit)
  ids = jnp.tile(jnp.repeat(jnp.arange(1, G + 1), len(GRID)), (B, 1))
  positions = jnp.tile(jnp.asarray(GRID), (B, G, 1))
  out = noise.grid_normal(keys, ids, positions, 4)
  return np.asarray(out).reshape(B, G, len(GRID), 4)


def test_noise_is_the_samples_own_wherever_it_is_packed():
  out = draw([[5, 9, 7]], [[0, 0, 1]])[0]
  moved = draw([[7, 5], [9, -1]], [[1, 0], [0, 0]])
  np.testing.assert_array_equal(moved[0, 1], out[0])
  np.testing.assert_array_equal(moved[1, 0], out[1])
  np.testing.assert_array_equal(moved[0, 0], out[2])


def test_the_order_of_tokens_and_padding_change_nothing():
  keys = noise.sample_keys(RNG, noise.NOISE, jnp.array([[3]]), jnp.array([[0]]))
  ids = jnp.array([[1] * 12 + [0] * 3])
  positions = jnp.concatenate([jnp.asarray(GRID), jnp.zeros((3, 3), int)])[None]
  out = noise.grid_normal(keys, ids, positions, 4)
  back = noise.grid_normal(keys, ids[:, ::-1], positions[:, ::-1], 4)
  np.testing.assert_array_equal(back[0, ::-1][:12], out[0, :12])
  np.testing.assert_array_equal(out[0, :12], draw([[3]], [[0]])[0, 0])


def test_sample_visit_position_purpose_and_seed_each_give_other_noise():
  draws = [
    draw([[1, 2]], [[0, 0]]),
    draw([[1, 2]], [[1, 1]]),
    draw([[0, 0]], [[1, 2]]),  # sample and visit do not trade places
    *(draw([[1, 2]], [[0, 0]], purpose) for purpose in range(1, 5)),
    draw([[1, 2]], [[0, 0]], rng=jax.random.key(1)),
  ]
  rows = np.stack(draws).reshape(-1, 4)
  assert len(np.unique(rows, axis=0)) == len(rows)


def test_positions_are_distinct_to_the_end_of_the_grid():
  ends = (0, 1, 2, 511, 512, 1022, 1023)
  positions = np.array(list(itertools.product((*ends, 4095), ends, ends)))
  keys = noise.sample_keys(RNG, noise.NOISE, jnp.array([[0]]), jnp.array([[0]]))
  ids = jnp.ones((1, len(positions)), int)
  out = noise.grid_normal(keys, ids, jnp.asarray(positions)[None], 4)
  assert len(np.unique(out[0], axis=0)) == len(positions)


def test_noise_is_standard_normal():
  index = jnp.arange(500)[None]
  out = np.sort(draw(index, 0 * index).ravel())
  expected = (np.arange(len(out)) + 0.5) / len(out)
  gap = np.abs(jax.scipy.stats.norm.cdf(out) - expected).max()
  assert gap < 1.63 / np.sqrt(len(out))  # Kolmogorov-Smirnov, 1 percent
