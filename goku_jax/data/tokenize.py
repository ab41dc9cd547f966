"""Captions as bytes: UTF-8 (0 to 255), then one end-of-text token."""

import numpy as np

from goku_jax.typing import UserError

EOS = 256
VOCAB = 257


def encode(text: str, max_length: int | None = None) -> np.ndarray:
  """Token ids int32 [n]; a longer text is cut, and still ends in EOS."""
  try:
    data = text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"the text {text[:40]!a} is not valid UTF-8 at character "
      f"{error.start}: remove what is there"
    ) from error
  if max_length is not None:
    if max_length < 1:
      raise UserError(f"max_length={max_length} leaves no room for EOS: set 1+")
    data = data[: max_length - 1]
  return np.array([*data, EOS], np.int32)


def decode(ids: np.ndarray) -> str:
  """The text of token ids; a character cut in two becomes U+FFFD."""
  return bytes(int(i) for i in ids if i < EOS).decode(errors="replace")
