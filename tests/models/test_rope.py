"""Rotary positions, against complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import rope


def turned(x, position, widths=(16, 24, 24), theta=1e4):
  """Pairs (2i, 2i+1) as complex numbers, turned by position * theta^(-2i/w)."""
  z = x[..., 0::2] + 1j * x[..., 1::2]
  frequencies = [theta ** (-np.arange(0, w, 2) / w) for w in widths]
  angle = np.repeat(position, [len(f) for f in frequencies])
  angle = angle * np.concatenate(frequencies)
  z = z * np.exp(1j * angle)
  return np.stack([z.real, z.imag], -1).reshape(x.shape)


def rotate(x, positions, *theta):
  """`x` [L, K] at `positions` [L, 3]."""
  tables = rope.rope_tables(jnp.asarray(positions)[None], x.shape[-1], *theta)
  x = jnp.asarray(x, jnp.float32)[None, :, None]
  return np.asarray(rope.rotate(x, *tables))[0, :, 0]


@pytest.mark.parametrize(
  ("head", "widths"),
  [
    (64, (16, 24, 24)),
    (128, (32, 48, 48)),
    (72, (20, 26, 26)),
    (48, (12, 18, 18)),
    (16, (4, 6, 6)),
  ],
)
def test_axes_share_a_head(head, widths):
  assert rope.axis_widths(head) == widths
  assert sum(widths) == head
  assert all(width % 2 == 0 for width in widths)


@pytest.mark.parametrize("head", [8, 14, 33, 0])
def test_a_head_that_cannot_be_split_is_refused(head):
  with pytest.raises(ValueError, match=f"even head width >= 16, got {head}"):
    rope.axis_widths(head)


@pytest.mark.parametrize("theta", [(), (1e4,), (20.0,), (1.0,)])
def test_rotation_multiplies_interleaved_pairs_by_unit_numbers(theta):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((6, 64))
  positions = rng.integers(0, 90, (6, 3))
  named = dict(theta=theta[0]) if theta else {}
  expected = np.stack(
    [turned(*row, **named) for row in zip(x, positions, strict=True)]
  )
  np.testing.assert_allclose(rotate(x, positions, *theta), expected, atol=2e-5)


def test_first_and_last_pair_of_each_axis_obey_theta():
  """By hand: pair i of a slice of w channels turns theta^(-2i/w) a step."""
  cos, sin = rope.rope_tables(jnp.ones((1, 1, 3), int), 64, 20.0)
  angle = np.arctan2(sin, cos)[0, 0]
  for start, width in ((0, 16), (16, 24), (40, 24)):
    np.testing.assert_allclose(angle[start : start + 2], 1.0, rtol=1e-5)
    slowest = 20.0 ** (-(width - 2) / width)
    last = angle[start + width - 2 : start + width]
    np.testing.assert_allclose(last, slowest, rtol=1e-5)


@pytest.mark.parametrize("shift", [(3, 0, 0), (0, 5, 0), (2, 7, 11)])
def test_products_depend_on_differences_only(shift):
  rng = np.random.default_rng(1)
  q, k = rng.standard_normal((2, 4, 64))
  at_q, at_k = rng.integers(0, 30, (2, 4, 3))
  product = lambda by: (rotate(q, at_q + by) * rotate(k, at_k + by)).sum(-1)
  np.testing.assert_allclose(
    product(np.array(shift)), product(0), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("shift", [(3, 0, 0), (0, 5, 0), (2, 7, 11)])
def test_products_of_sinusoids_depend_on_differences_only(shift):
  at_q, at_k = np.random.default_rng(1).integers(0, 30, (2, 1, 4, 3))
  added = lambda at: rope.sinusoids(jnp.asarray(at), 64)
  product = lambda by: (added(at_q + by) * added(at_k + by)).sum(-1)
  assert added(at_q).shape == (1, 4, 64)
  np.testing.assert_allclose(product(np.array(shift)), product(0), atol=1e-4)
  np.testing.assert_allclose((added(at_q) ** 2).sum(-1), 32, rtol=1e-5)


def test_the_origin_stays_and_lengths_are_kept():
  x = np.random.default_rng(2).standard_normal((5, 16)).astype(np.float32)
  np.testing.assert_array_equal(rotate(x, np.zeros((5, 3), int)), x)
  far = rotate(x, np.full((5, 3), 1000))
  np.testing.assert_allclose(
    np.linalg.norm(far, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
  )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_turns_its_own_channels(axis):
  x = np.ones((1, 64), np.float32)
  step = np.eye(3, dtype=int)[axis][None]
  moved = np.flatnonzero((rotate(x, step) != x)[0])
  start, width = [(0, 16), (16, 24), (40, 24)][axis]
  assert moved.tolist() == list(range(start, start + width))
