"""Packs hold samples whole: their arrays, and the way back."""

import numpy as np
import pytest

from goku_jax.data import packing, patches, schema, tokenize
from goku_jax.data.packing import Capacity


def make_samples(shapes, channels=3, width=0):
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.normal(size=(*shape, channels)).astype(np.float32)
  return [
    {
      "mean": draw(shape),
      "logvar": draw(shape),
      "text_ids": (ids := tokenize.encode("five " * i)),
      "text_embeddings": rng.normal(size=(len(ids), width)).astype(np.float16),
      "class": i,
      "index": 100 + i,
      "visit": i % 2,
      "quantile": i / 8,
    }
    for i, shape in enumerate(shapes)
  ]


@pytest.mark.parametrize("patch_size", [(1, 2, 2), (2, 2, 4), (1, 1, 1)])
def test_unpack_is_the_inverse_of_pack(patch_size):
  samples = make_samples([(2, 4, 4), (4, 8, 4), (2, 2, 8)])
  batch = packing.pack(
    samples, Capacity(200, 40, 5), patch_size=patch_size, channels=3
  )
  P = int(np.prod(patch_size)) * 3
  for name, array in batch.items():
    assert array.dtype == schema.FLOW[name]
    sizes = dict(B=1, L=200, P=P, S=40, E=0, G=5, K=0)
    assert array.shape == schema.shape_of(name, **sizes)
  (back,) = packing.unpack(batch, patch_size=patch_size)
  assert len(back) == len(samples)
  for one, two in zip(samples, back, strict=True):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])


def test_a_pack_says_whose_each_place_is():
  samples = make_samples([(1, 4, 4), (2, 4, 4)])
  batch = packing.pack(samples, Capacity(16, 12, 3), channels=3)
  ids = batch["segment_ids_BL"][0]
  np.testing.assert_array_equal(ids, [1] * 4 + [2] * 8 + [0] * 4)
  text_ids = batch["text_segment_ids_BS"][0]
  np.testing.assert_array_equal(text_ids, [-1, 1] + [2] * 3 + [0] * 7)
  assert batch["text_ids_BS"][0, 0] == tokenize.EOS
  np.testing.assert_array_equal(
    batch["text_positions_BS"][0], [0, 0, 0, 1, 2] + [0] * 7
  )
  np.testing.assert_array_equal(batch["sample_index_BG"], [[100, 101, -1]])
  padding = ids == 0
  assert not batch["tokens_BLP"][0, padding].any()
  assert (batch["tokens_logvar_BLP"][0, padding] == schema.NO_LOGVAR).all()


def test_embeddings_lie_beside_their_captions():
  samples = make_samples([(1, 4, 4), (2, 4, 4)], width=6)
  null = np.full((1, 6), 7, np.float16)
  batch = packing.pack(samples, Capacity(16, 12, 3), channels=3, null_text=null)
  rows, ids = batch["text_embeddings_BSE"][0], batch["text_segment_ids_BS"][0]
  np.testing.assert_array_equal(rows[ids == schema.EMPTY_CAPTION], null)
  for g, sample in enumerate(samples, 1):
    np.testing.assert_array_equal(rows[ids == g], sample["text_embeddings"])
  assert not rows[ids == schema.PADDING].any()


def test_a_pack_of_none_is_padding():
  batch = packing.pack([], Capacity(16, 12, 3), channels=3)
  empty = schema.empty_packs(B=1, L=16, P=12, S=12, G=3)
  for name in ("tokens_BLP", "segment_ids_BL", "sample_index_BG"):
    np.testing.assert_array_equal(batch[name], empty[name])


def test_too_much_for_a_pack_is_refused():
  samples = make_samples([(1, 4, 4), (2, 4, 4)])
  for capacity in ((11, 12, 3), (16, 4, 3), (16, 12, 1)):
    with pytest.raises(ValueError, match="do not fit"):
      packing.pack(samples, Capacity(*capacity), channels=3)


def test_tokens_go_frame_by_frame_and_row_by_row():
  grid = (2, 3, 4)
  place = np.stack(np.indices((2, 6, 8)), axis=-1)
  tokens = patches.patchify(place, (1, 2, 2))
  positions = patches.grid_positions(grid)
  np.testing.assert_array_equal(tokens[:, :3], positions * [1, 2, 2])
  first_patch = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]  # (ph pw c)
  np.testing.assert_array_equal(tokens[0], np.ravel(first_patch))
  back = patches.unpatchify(tokens, grid, (1, 2, 2))
  np.testing.assert_array_equal(back, place)
  with pytest.raises(ValueError, match="do not divide"):
    patches.patchify(np.zeros((1, 3, 4, 1)), (1, 2, 2))


def test_conditions_are_packed_beside_the_latents():
  samples = make_samples([(2, 4, 4), (1, 2, 2)])
  for i, sample in enumerate(samples):
    shape = (*sample["mean"].shape[:3], 4)
    sample["condition"] = np.full(shape, i + 1, np.float32)
  batch = packing.pack(
    samples, Capacity(20, 40, 5), channels=3, conditioned=True
  )
  assert batch["condition_BLK"].shape == (1, 20, 16)
  ids = batch["segment_ids_BL"][..., None]
  np.testing.assert_array_equal(
    batch["condition_BLK"], np.broadcast_to(ids, (1, 20, 16))
  )
  (back,) = packing.unpack(batch)
  for one, two in zip(samples, back, strict=True):
    np.testing.assert_array_equal(one["condition"], two["condition"])
