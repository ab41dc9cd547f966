"""Guidance: its two ends, and its line through them."""

import jax
import numpy as np

from goku_jax.flow import guidance

COND, UNCOND = jax.random.normal(jax.random.key(0), (2, 3, 4))


def test_one_is_conditional_and_zero_is_not():
  np.testing.assert_allclose(
    guidance.guide(COND, UNCOND, 1.0), COND, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(guidance.guide(COND, UNCOND, 0.0), UNCOND)


def test_more_goes_on_along_the_same_line():
  np.testing.assert_allclose(
    guidance.guide(COND, UNCOND, 3.0), 3 * COND - 2 * UNCOND, rtol=1e-4
  )
