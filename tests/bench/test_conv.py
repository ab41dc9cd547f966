"""The bench of convolutions measures what it says."""

import pytest

from goku_jax.bench import conv


def test_a_ratio_is_that_of_its_times():
  (found,) = conv.compare(2, "float32", [(4, 6, 3, 2)]).values()
  for what in ("forward", "gradients"):
    planes, volume = (found[f"{form}_{what}_ms"] for form in conv.FORMS)
    assert found[f"{what}_ratio"] == pytest.approx(volume / planes)
