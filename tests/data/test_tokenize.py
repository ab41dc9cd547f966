"""Pieces of words and an end of text."""

import numpy as np
import pytest

from goku_jax.data import clips, tokenize
from goku_jax.typing import UserError

TEXTS = [
  "",
  "five",
  "the digit five moves down right quickly",
  " spaces  before,\tinside\n and after  ",
  "cinq — пять — 五 — 🖐",
  "\x01\x7f\u00a0\uffff\U0010ffff",
  "ÿ" * 9,  # the code point 0xFF is not the byte 0xFF
]


def decode(ids):
  """The text of token ids; a character cut in two becomes U+FFFD."""
  pieces = np.asarray([i for i in ids if i != tokenize.EOS], "<i4").tobytes()
  return pieces.replace(b"\0", b"").decode(errors="replace")


@pytest.mark.parametrize("text", TEXTS)
def test_decode_is_the_inverse_of_encode(text):
  ids = tokenize.encode(text)
  assert ids.dtype == np.int32
  assert decode(ids) == text


def test_any_text_comes_back():
  rng = np.random.default_rng(0)
  letters = [*"ab \t\n", "é", "—", "五", "🖐"]
  for length in range(60):
    text = "".join(rng.choice(letters, length))
    ids = tokenize.encode(text)
    assert decode(ids) == text
    assert (ids == tokenize.EOS).sum() == 1
    assert ids[-1] == tokenize.EOS


def test_a_token_is_up_to_four_bytes_of_one_word():
  pieces = [
    int(i).to_bytes(4, "little", signed=True).rstrip(b"\0")
    for i in tokenize.encode("the digit  五")
  ]
  assert pieces == [b"the", b" dig", b"it", b"  ", "五".encode(), b"\xff"]


def test_a_word_has_the_same_tokens_wherever_it_stands():
  first = tokenize.encode("five moves left")
  second = tokenize.encode("the digit five moves left")
  np.testing.assert_array_equal(first[1:], second[-len(first) + 1 :])


def test_no_two_texts_share_their_tokens():
  texts = ["a b", "ab", "a  b", "a b ", " a b", "abcde", "abcd e", "b a"]
  assert len({tokenize.encode(text).tobytes() for text in texts}) == len(texts)


def test_a_long_text_is_cut_and_still_ends():
  ids = tokenize.encode("abcdef", 2)
  assert ids[-1] == tokenize.EOS
  assert decode(ids) == "abcd"
  whole = tokenize.encode("abcdef")
  np.testing.assert_array_equal(tokenize.encode("abcdef", 3), whole)
  assert len(tokenize.encode("five " * 2000, 64)) == 64
  assert decode(tokenize.encode("五五", 2)) == "五\ufffd"
  np.testing.assert_array_equal(tokenize.encode("五", 1), [tokenize.EOS])


@pytest.mark.parametrize("length", [16, 64, 128])
def test_a_long_caption_keeps_the_sentence_of_its_motion_score(length):
  caption = clips.add_motion_score("five " * 2000, 4.2)
  ids = tokenize.encode(caption, length)
  assert len(ids) == length
  assert decode(ids).startswith("five five")
  assert decode(ids).endswith(" Motion score: 4.2.")
  # A second cut, of what was prepared, leaves what one alone would.
  np.testing.assert_array_equal(
    tokenize.cut(ids, 15), tokenize.encode(caption, 15)
  )


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("five \ud800", "not valid UTF-8 at character 5"),
    ("\udcff", "not valid UTF-8 at character 0"),  # a stray byte in argv
    ("a\0b", "has a NUL character: remove it"),
  ],
)
def test_what_no_token_can_hold_is_refused(text, says):
  with pytest.raises(UserError, match=says):
    tokenize.encode(text)


def test_no_room_for_the_end_is_refused():
  with pytest.raises(UserError, match="max_length=0"):
    tokenize.encode("five", 0)
