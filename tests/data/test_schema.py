"""What the batch is made of, stated once."""

import pytest

from goku_jax.data import schema, tokenize
from goku_jax.models import text, transformer
from goku_jax.typing import UserError


@pytest.mark.parametrize(
  ("num_frames", "nearest"),
  [(16, (13, 17)), (0, (1, 5)), (-3, (1, 5)), (2, (1, 5)), (4, (1, 5))],
)
def test_frames_that_are_not_4k_1_name_the_two_nearest(num_frames, nearest):
  says = f"the nearest are {nearest[0]} and {nearest[1]}"
  with pytest.raises(UserError, match=says):
    schema.check_frames(num_frames)


def test_the_models_read_what_the_batch_says():
  """Each room spells these numbers out: none may import another."""
  assert transformer.NULL_TEXT == schema.EMPTY_CAPTION
  assert text.PIECE == tokenize.PIECE
