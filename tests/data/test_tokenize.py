"""Bytes and an end of text."""

import numpy as np
import pytest

from goku_jax.data import tokenize
from goku_jax.typing import UserError


@pytest.mark.parametrize("text", ["", "five", "cinq — пять — 五 — 🖐"])
def test_decode_is_the_inverse_of_encode(text):
  ids = tokenize.encode(text)
  assert ids.dtype == np.int32
  assert len(ids) == len(text.encode()) + 1
  assert ids[-1] == tokenize.EOS
  assert ids.max() < tokenize.VOCAB
  assert tokenize.decode(ids) == text


def test_a_long_text_is_cut_and_still_ends():
  np.testing.assert_array_equal(tokenize.encode("abcdef", 4), [97, 98, 99, 256])
  np.testing.assert_array_equal(tokenize.encode("abc", 4), [97, 98, 99, 256])
  assert len(tokenize.encode("five " * 2000, 64)) == 64
  assert tokenize.decode(tokenize.encode("五五", 5)) == "五\ufffd"


def test_what_is_not_utf8_is_refused():
  with pytest.raises(UserError, match="not valid UTF-8 at character 5"):
    tokenize.encode("five \ud800")
