"""Captions as pieces of words: up to four bytes a token.

A piece is at most four UTF-8 bytes of one word (a word keeps the space before
it), read as one little-endian number, so any text is encoded without a
vocabulary and a caption has a third as many tokens as bytes. One end-of-text
token follows.
"""

import re

import numpy as np
from jaxtyping import Int32

from goku_jax.typing import UserError

EOS = 0xFF  # a byte that UTF-8 never has
PIECE = 4  # bytes
# Tokens at the end of a caption that stay when it is cut: as many as the
# letters of " Motion score: 999.9." and an end of text, whatever splits them.
KEPT = 24
_WORD = re.compile(rb"\s?\S+|\s+")


def encode(text: str, max_length: int | None = None) -> Int32[np.ndarray, " n"]:
  """Token ids; a longer text is cut, and still ends as it did and in EOS.

  Raises:
    UserError: the text is not valid UTF-8, or holds a NUL character.
  """
  try:
    data = text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"the text {text[:40]!a} is not valid UTF-8 at character "
      f"{error.start}: remove what is there"
    ) from error
  if b"\0" in data:
    raise UserError(f"the text {text[:40]!a} has a NUL character: remove it")
  if max_length is not None and max_length < 1:
    raise UserError(f"max_length={max_length} leaves no room for EOS: set 1+")
  pieces = b"".join(
    word[i : i + PIECE].ljust(PIECE, b"\0")
    for word in _WORD.findall(data)
    for i in range(0, len(word), PIECE)
  )
  ids = np.append(np.frombuffer(pieces, "<i4"), np.int32(EOS))
  return ids if max_length is None else cut(ids, max_length)


def cut(tokens, length: int):
  """A caption of at most `length` tokens, or embeddings `[n, E]` of them.

  A longer one loses what does not fit just before its last `KEPT` tokens, or
  before the last half of `length` where that is less: so the sentence of a
  motion score stays, and the end of text. Nothing marks that sentence among
  tokens, so a caption without one keeps its end too.
  """
  if len(tokens) <= length:
    return tokens
  kept = max(1, min(KEPT, length // 2))
  return np.concatenate([tokens[: length - kept], tokens[-kept:]])
