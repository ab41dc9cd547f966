"""The bench of decoding measures two sides that give the same frames."""

import pytest

from goku_jax.bench import decode


def test_both_sides_give_the_same_frames_and_the_ratio_is_of_their_rates():
  found = decode.compare(1, (9, 48, 64))
  assert found["difference"] == 0
  assert found["pyav_decode_fps"] > 0
  assert found["decode_ratio"] == pytest.approx(
    found["ours_decode_fps"] / found["pyav_decode_fps"]
  )
