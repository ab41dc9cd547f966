"""Sources: what was written is read, in units of one, or the fault is named."""

import json

import numpy as np
import pytest

from goku_jax.data import digits, schema, sources, tokenize
from goku_jax.typing import UserError

LOGVAR = -2.0


def make_records(n=25, seed=0, dtype=np.float32):
  """Latents of one or three frames whose channels differ in place and size."""
  rng = np.random.default_rng(seed)
  for i in range(n):
    shape = (1 + 2 * (i % 2), 4, 6, 2)
    mean = np.array([3.0, -1.0]) + np.array([2.0, 0.1]) * rng.normal(size=shape)
    yield {
      "mean": mean.astype(dtype),
      "logvar": np.full(shape, LOGVAR, dtype),
      "caption": f"the digit {i} — п",
      "digit": i % 10,
      "speed": 0.5,
    }


def write_shards(folder, records, **more):
  writer = sources.ShardWriter(folder, **more)
  writer.write(records)
  return writer.finish()


@pytest.fixture
def folder(tmp_path):
  write_shards(
    tmp_path / "latents",
    make_records(),
    records_per_shard=10,
    about={"vae": "debug"},
  )
  return tmp_path / "latents"


def test_shards_give_back_what_was_written(folder):
  source = sources.Latents(folder)
  assert len(source) == 25
  assert source.manifest["vae"] == "debug"
  assert source.num_classes == 1
  assert [s["records"] for s in source.manifest["shards"]] == [10, 10, 5]
  mean, std = (
    np.array(source.manifest[k]) for k in ("latent_mean", "latent_std")
  )
  for i, record in enumerate(make_records()):
    sample = source[i]
    assert sample["mean"].dtype == sample["logvar"].dtype == np.float32
    np.testing.assert_allclose(
      sample["mean"] * std + mean, record["mean"], atol=1e-5
    )
    np.testing.assert_allclose(
      np.exp(sample["logvar"]) * std**2, np.exp(record["logvar"]), rtol=1e-5
    )
    ids = tokenize.encode(record["caption"])
    np.testing.assert_array_equal(sample["text_ids"], ids)
    assert (sample["class"], sample["index"]) == (record["digit"], i)


def test_what_training_draws_has_unit_variance(folder):
  source = sources.Latents(folder)
  rng = np.random.default_rng(1)
  drawn = []
  for i in np.repeat(np.arange(25), 40):
    mean, logvar = source[i]["mean"], source[i]["logvar"]
    draw = mean + np.exp(0.5 * logvar) * rng.normal(size=mean.shape)
    drawn.append(draw.reshape(-1, 2))
  drawn = np.concatenate(drawn)
  np.testing.assert_allclose(drawn.mean(0), 0, atol=0.03)
  np.testing.assert_allclose(drawn.std(0), 1, atol=0.03)


def test_half_precision_is_read_as_float32(tmp_path):
  records = make_records(4, dtype=np.float16)
  write_shards(tmp_path, records, records_per_shard=9)
  assert sources.Latents(tmp_path)[3]["mean"].dtype == np.float32


def test_latents_in_another_memory_order_are_written_right(tmp_path):
  records = list(make_records(2))
  turned = [{**r, "mean": np.asfortranarray(r["mean"])} for r in records]
  write_shards(tmp_path / "a", records, records_per_shard=9)
  write_shards(tmp_path / "b", turned, records_per_shard=9)
  a, b = (sources.Latents(tmp_path / k)[1]["mean"] for k in "ab")
  np.testing.assert_array_equal(a, b)


def test_the_same_records_give_the_same_bytes(folder, tmp_path):
  again = tmp_path / "again"
  write_shards(again, make_records(99), records_per_shard=5, about={"vae": "x"})
  write_shards(  # over a larger one, of which nothing stays
    again, make_records(), records_per_shard=10, about={"vae": "debug"}
  )
  bytes_of = lambda f: {p.name: p.read_bytes() for p in f.iterdir()}
  assert bytes_of(folder) == bytes_of(again)


def test_what_is_whole_is_not_written_again(folder, tmp_path):
  more = dict(records_per_shard=10, about={"vae": "debug"})
  broken, records = tmp_path / "broken", list(make_records())
  with pytest.raises(TypeError):
    sources.ShardWriter(broken, **more).write([*records[:23], None])
  done = list(broken.glob("shard-0000[01].array_record"))
  times = [p.stat().st_mtime_ns for p in done]
  assert len(sources.ShardWriter(broken, **more)) == 20
  for other in (dict(about={"vae": "x"}), dict(records_per_shard=5)):
    assert len(sources.ShardWriter(broken, **more | other)) == 0
  write_shards(broken, records[20:], **more)
  assert times == [p.stat().st_mtime_ns for p in done]
  bytes_of = lambda f: {p.name: p.read_bytes() for p in f.iterdir()}
  assert bytes_of(broken) == bytes_of(folder)


def test_a_shard_that_is_damaged_is_written_again(folder, tmp_path):
  more = dict(records_per_shard=10, about={"vae": "debug"})
  broken, records = tmp_path / "broken", list(make_records())
  sources.ShardWriter(broken, **more).write(records)
  path = broken / "shard-00001.array_record"
  path.write_bytes(path.read_bytes()[:-1])
  assert len(sources.ShardWriter(broken, **more)) == 10
  write_shards(broken, records[10:], **more)
  bytes_of = lambda f: {p.name: p.read_bytes() for p in f.iterdir()}
  assert bytes_of(broken) == bytes_of(folder)


def test_sizes_count_tokens_and_text_tokens(folder):
  sizes = sources.Latents(folder).sizes((1, 2, 2), 64)
  np.testing.assert_array_equal(sizes[:2, 0], [6, 18])
  texts = [len(tokenize.encode(r["caption"])) for r in make_records()]
  np.testing.assert_array_equal(sizes[:, 1], texts)
  assert sources.Latents(folder).sizes((1, 2, 2), 5)[:, 1].max() == 5
  with pytest.raises(UserError, match=r"sample 0 of 1x4x6 .* patches of 1x4x4"):
    sources.Latents(folder).sizes((1, 4, 4), 64)


@pytest.mark.parametrize("name", ["shard-00001.array_record", "index.npz"])
def test_a_flipped_byte_is_named(folder, name):
  path = folder / name
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match=rf"{name} differs from its digest"):
    sources.Latents(folder)


def test_a_missing_shard_is_named(folder):
  (folder / "shard-00002.array_record").unlink()
  with pytest.raises(UserError, match=r"shard-00002\.array_record is missing"):
    sources.Latents(folder)


def test_a_folder_without_a_manifest_is_not_whole(folder):
  def broken_records():
    yield from make_records(15)
    raise OSError("power cut")

  with pytest.raises(OSError, match="power cut"):
    write_shards(folder, broken_records(), records_per_shard=10)
  with pytest.raises(UserError, match=r"has no manifest.json"):
    sources.Latents(folder)


def test_another_layout_and_a_broken_manifest_are_said(folder):
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text())
  for layout in (sources.LAYOUT - 1, sources.LAYOUT + 1):
    path.write_text(json.dumps({**manifest, "layout": layout}))
    says = f"layout {layout} and this version reads {sources.LAYOUT}"
    with pytest.raises(UserError, match=says):
      sources.Latents(folder)
  path.write_text("{")
  with pytest.raises(UserError, match="not valid JSON"):
    sources.Latents(folder)


def test_nothing_and_nan_are_not_written(tmp_path):
  with pytest.raises(UserError, match="0 records"):
    write_shards(tmp_path, [], records_per_shard=10)
  with pytest.raises(UserError, match="records_per_shard=0: set 1"):
    write_shards(tmp_path, make_records(), records_per_shard=0)
  bad = next(make_records())
  bad["mean"][0, 0, 0, 0] = np.nan
  with pytest.raises(ValueError, match="record 0 has latents that are not fin"):
    write_shards(tmp_path, [bad], records_per_shard=10)


def test_pixels_are_latents_of_their_own():
  raw = digits.Digits(num_samples=50)
  source = sources.Pixels(raw)
  sizes = source.sizes((1, 8, 8), 64)
  np.testing.assert_array_equal(sizes[:2, 0], [16, 17 * 16])
  for i in (0, 1):
    sample = source[i]
    video = np.rint((sample["mean"] + 1) * 127.5)
    np.testing.assert_array_equal(video, raw[i]["video"])
    assert (sample["logvar"] == schema.NO_LOGVAR).all()
    assert len(sample["text_ids"]) == sizes[i, 1]
    assert sample["class"] == raw[i]["digit"]
