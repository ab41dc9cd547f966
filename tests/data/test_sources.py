"""Sources: what was written is read, in units of one, or the fault is named."""

import numpy as np
import pytest

from goku_jax.data import digits, schema, shards, sources, tokenize
from goku_jax.typing import UserError
from tests.data.test_shards import ITEMS, flip_byte, make_record

WIDTH = 6  # of text embeddings


def write_folder(
  folder, seed=0, *, items=ITEMS, vae="a", text=None, half=False, classes=()
):
  """A folder of latents, with embeddings of `text` where that is given."""
  about = {"vae": {"digest": vae}, "text": text and {"digest": text}}
  about["classes"] = list(classes)
  writer = shards.ShardWriter(
    folder, items=items, items_per_shard=10, about=about
  )
  for number in range(len(writer)):
    records = []
    for i in writer.items(number):
      record = make_record(i + seed, np.float16 if half else np.float32)
      if text:
        captions = record["about"]["captions"]
        record["text"] = [embed(c) for c in captions]
      records.append(record)
    writer.write(number, records, [])
  writer.finish()
  if text:
    np.save(folder / shards.NULL_TEXT, embed("")[-1:])
  return folder


def embed(caption):
  """Rows that tell the caption, one for each word and one more."""
  n = len(caption.split()) + 1
  rng = np.random.default_rng(len(caption))
  return rng.normal(size=(n, WIDTH)).astype(np.float16)


@pytest.fixture
def folder(tmp_path):
  return write_folder(tmp_path / "latents")


def test_a_folder_gives_back_what_was_written(folder):
  source = sources.Latents(folder)
  assert (len(source), source.num_classes, source.channels) == (ITEMS, 1, 2)
  mean, std = (
    np.array(source.manifest[k]) for k in ("latent_mean", "latent_std")
  )
  for i in range(ITEMS):
    record, sample = make_record(i), source.read(i, 0)
    assert sample["mean"].dtype == sample["logvar"].dtype == np.float32
    np.testing.assert_allclose(
      sample["mean"] * std + mean, record["mean"], atol=1e-5
    )
    np.testing.assert_allclose(
      np.exp(sample["logvar"]) * std**2, np.exp(record["logvar"]), rtol=1e-5
    )
    assert (sample["class"], sample["index"]) == (record["class"], i)
    assert source.is_video[i] == (len(record["mean"]) > 1)


def test_what_training_draws_has_unit_variance(folder):
  source = sources.Latents(folder)
  rng = np.random.default_rng(1)
  drawn = []
  for i in np.repeat(np.arange(ITEMS), 40).tolist():
    sample = source.read(i, 0)
    mean, logvar = sample["mean"], sample["logvar"]
    draw = mean + np.exp(0.5 * logvar) * rng.normal(size=mean.shape)
    drawn.append(draw.reshape(-1, 2))
  drawn = np.concatenate(drawn)
  np.testing.assert_allclose(drawn.mean(0), 0, atol=0.03)
  np.testing.assert_allclose(drawn.std(0), 1, atol=0.03)


def test_half_precision_is_read_as_float32(tmp_path):
  source = sources.Latents(write_folder(tmp_path, items=4, half=True))
  assert source.read(3, 0)["mean"].dtype == np.float32


def test_captions_take_turns_by_visit(folder):
  source = sources.Latents(folder)
  seen = {0: 0, 1: 0}
  for i in range(ITEMS):
    texts = [tokenize.encode(c) for c in make_record(i)["about"]["captions"]]
    for visit in range(20):
      ids = source.read(i, visit)["text_ids"]
      (k,) = (k for k, text in enumerate(texts) if np.array_equal(text, ids))
      np.testing.assert_array_equal(ids, source.read(i, visit)["text_ids"])
      seen[k] += 1
  assert min(seen.values()) > 0.4 * sum(seen.values())


def test_sizes_count_tokens_and_the_longest_caption(folder):
  sizes = sources.Latents(folder).sizes((1, 2, 2), 64)
  np.testing.assert_array_equal(sizes[:2, 0], [6, 18])
  texts = [make_record(i)["about"]["captions"] for i in range(ITEMS)]
  longest = [max(len(tokenize.encode(c)) for c in pair) for pair in texts]
  np.testing.assert_array_equal(sizes[:, 1], longest)
  assert sources.Latents(folder).sizes((1, 2, 2), 5)[:, 1].max() == 5
  with pytest.raises(UserError, match=r"sample 0 of 1x4x6 .* patches of 1x4x4"):
    sources.Latents(folder).sizes((1, 4, 4), 64)


def test_embeddings_take_the_place_of_pieces(tmp_path):
  folder = write_folder(tmp_path / "latents", text="t5")
  source = sources.Latents(folder, embedded=True)
  np.testing.assert_array_equal(source.null_text, embed("")[-1:])
  for i in range(4):
    captions = make_record(i)["about"]["captions"]
    sample = source.read(i, 1)
    k = sources.draw_caption(2, i, 1)
    want = embed(captions[k])
    np.testing.assert_array_equal(sample["text_embeddings"], want)
    assert len(sample["text_ids"]) == len(want)
    longest = max(len(embed(c)) for c in captions)
    assert source.sizes((1, 2, 2), 64)[i, 1] == longest
  assert sources.Latents(folder).read(0, 0)["text_embeddings"].shape[1] == 0
  plain = write_folder(tmp_path / "plain")
  with pytest.raises(UserError, match="has no text embeddings: run prepare"):
    sources.Latents(plain, embedded=True)


@pytest.mark.parametrize("name", ["shard-00001.array_record", "index.npz"])
def test_a_flipped_byte_is_named(folder, name):
  flip_byte(folder / name)
  with pytest.raises(UserError, match=rf"{name} differs from its digest"):
    sources.Latents(folder)


def test_folders_are_read_as_one(tmp_path):
  one = write_folder(tmp_path / "one")
  two = write_folder(tmp_path / "two", 100, items=7)
  both = sources.open_latents(f"{one}, {two}")
  assert len(both) == ITEMS + 7
  assert both.member.tolist() == [0] * ITEMS + [1] * 7
  first = sources.Latents(one)
  scaled = sources.Latents(two, statistics=first.statistics)
  for i, (source, own) in {3: (first, 3), ITEMS + 2: (scaled, 2)}.items():
    sample, want = both.read(i, 0), source.read(own, 0)
    assert sample["index"] == i
    np.testing.assert_array_equal(sample["mean"], want["mean"])
  sizes = both.sizes((1, 2, 2), 64)
  np.testing.assert_array_equal(sizes[ITEMS:], scaled.sizes((1, 2, 2), 64))
  assert sizes[both.is_video, 0].min() == 18


def test_folders_of_other_networks_are_refused(tmp_path):
  one = write_folder(tmp_path / "one", text="t5")
  other_vae = write_folder(tmp_path / "vae", vae="b", text="t5")
  other_text = write_folder(tmp_path / "text", text="umt5")
  with pytest.raises(UserError, match=r"vae was prepared with another autoenc"):
    sources.open_latents(f"{one},{other_vae}")
  assert len(sources.open_latents(f"{one},{other_text}")) == 2 * ITEMS
  with pytest.raises(UserError, match="prepared with another text encoder"):
    sources.open_latents(f"{one},{other_text}", embedded=True)


def test_pixels_are_latents_of_their_own():
  raw = digits.Digits(num_samples=50)
  source = sources.Pixels(raw)
  sizes = source.sizes((1, 8, 8), 64)
  np.testing.assert_array_equal(sizes[:2, 0], [16, 17 * 16])
  for i in (0, 1):
    sample = source.read(i, 0)
    video = np.rint((sample["mean"] + 1) * 127.5)
    np.testing.assert_array_equal(video, raw[i]["video"])
    assert (sample["logvar"] == schema.NO_LOGVAR).all()
    assert len(sample["text_ids"]) == sizes[i, 1]
    assert sample["class"] == raw[i]["digit"]


@pytest.mark.parametrize(
  ("second", "count"), [(("cat", "dog"), 2), ((), 2), (("dog", "cat"), 1)]
)
def test_folders_have_the_classes_that_they_share(tmp_path, second, count):
  for name, classes in (("a", ("cat", "dog")), ("b", second)):
    write_folder(tmp_path / name, classes=classes)
  both = sources.open_latents(f"{tmp_path / 'a'},{tmp_path / 'b'}")
  assert both.num_classes == count
