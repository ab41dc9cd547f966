"""The probe's outputs: bounded features, scores linear in them."""

import jax
import numpy as np

from goku_jax.models.judges import probe


def make_probe(**kwargs):
  model = probe.GlyphProbe(**kwargs)
  crops = jax.random.uniform(jax.random.key(1), (6, 14, 14))
  return model, model.init(jax.random.key(0), crops), crops


def test_scores_are_linear_in_the_features():
  model, variables, crops = make_probe()
  scores, features = model.apply(variables, crops)
  assert scores.shape == (6, 10)
  assert features.shape == (6, 64)
  assert (np.abs(features) <= 1).all()
  head = variables["params"]["head"]
  np.testing.assert_allclose(
    scores, features @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-5
  )


def test_a_crop_is_read_alone():
  model, variables, crops = make_probe(num_classes=4, num_features=8, width=8)
  together, _ = model.apply(variables, crops)
  alone, _ = model.apply(variables, crops[2:3])
  np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-5)
  assert together.shape == (6, 4)
