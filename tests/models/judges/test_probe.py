"""The probe's scores: of each crop alone."""

import jax
import numpy as np
import pytest

from goku_jax.models.judges import probe


@pytest.mark.slow
def test_a_crop_is_read_alone():
  model = probe.GlyphProbe(num_classes=4, width=8)
  crops = jax.random.uniform(jax.random.key(1), (6, 14, 14))
  variables = model.init(jax.random.key(0), crops)
  together = model.apply(variables, crops)
  alone = model.apply(variables, crops[2:3])
  np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-5)
  assert together.shape == (6, 4)
