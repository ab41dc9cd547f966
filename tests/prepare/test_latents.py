"""Prepared latents: whole or started again, in order, of unit variance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax import checkpoint, job
from goku_jax.data import digits, sources
from goku_jax.models import vae
from goku_jax.prepare import __main__ as prepare_main
from goku_jax.prepare import latents
from goku_jax.sample import restore
from tests import runs

NUM = 140  # more than are read at once, and no multiple of a chunk


class Silent:
  """Progress that nobody sees."""

  def update(self, done):
    self.done = done


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  """A workdir of an untrained autoencoder, and what is in it."""
  folder = tmp_path_factory.mktemp("vae")
  config = runs.read_config("vae")
  job.save_config(folder, config)
  model = vae.make_vae(**config.model)
  init = jax.jit(model.init)
  params = init(jax.random.key(0), np.zeros((1, 1, 16, 16, 3)))["params"]
  with checkpoint.Checkpointer(folder / "checkpoints") as checkpointer:
    checkpointer.save(2, {"ema": params}, {})
  return folder, model, params


def config_of(encoder):
  return runs.read_config(
    "prepare", vae__workdir=str(encoder[0]), data__digits__num_samples=NUM
  )


@pytest.fixture(scope="module")
def prepared(encoder, tmp_path_factory):
  folder = tmp_path_factory.mktemp("latents")
  return folder, latents.prepare(config_of(encoder), folder)


def contents(folder):
  return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def test_records_are_those_of_the_samples_in_order(encoder):
  _, model, params = encoder
  raw = digits.Digits(num_frames=5, canvas=16, num_samples=NUM)
  records = list(latents.encode(model, params, raw, Silent()))
  assert len(records) == NUM
  for i, record in enumerate(records):
    frames = len(raw[i]["video"])
    assert record["caption"] == raw[i]["caption"]
    assert record["mean"].shape == ((frames - 1) // 4 + 1, 4, 4, 4)
  for i in (0, 1, NUM - 1):  # alone, without padding
    video = jnp.asarray(raw[i]["video"][None] / 127.5 - 1, jnp.float32)
    alone = model.apply({"params": params}, video, method="encode")
    for key, one in zip(("mean", "logvar"), alone, strict=True):
      np.testing.assert_allclose(records[i][key], one[0], atol=1e-4)


def test_the_classes_are_known_without_reading_all(prepared):
  assert sources.Latents(prepared[0]).num_classes == 10


def test_a_finished_folder_is_left_as_it_is(encoder, prepared):
  folder, result = prepared
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
  assert latents.prepare(config_of(encoder), folder) == result
  assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_interrupted_work_goes_on_from_whole_shards(
  encoder, prepared, tmp_path, monkeypatch
):
  encode = latents.encode

  def broken(*args):
    yield from itertools.islice(encode(*args), 70)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(latents, "encode", broken)
    with pytest.raises(KeyboardInterrupt):
      latents.prepare(config_of(encoder), tmp_path)
  assert not (tmp_path / sources.MANIFEST).exists()
  firsts = []
  with monkeypatch.context() as patch:
    patch.setattr(
      latents, "encode", lambda *args: firsts.append(args[-1]) or encode(*args)
    )
    assert latents.prepare(config_of(encoder), tmp_path) == prepared[1]
  assert firsts == [64]  # two shards of 32, within one window
  assert contents(tmp_path) == contents(prepared[0])


def test_what_training_draws_has_unit_variance(prepared):
  source = sources.Latents(prepared[0])
  samples = [source[i] for i in range(NUM)]
  mean, logvar = (
    np.concatenate([s[k].reshape(-1, 4) for s in samples])
    for k in ("mean", "logvar")
  )
  np.testing.assert_allclose(mean.mean(0), 0, atol=1e-3)
  variance = mean.var(0) + np.exp(logvar).mean(0)
  np.testing.assert_allclose(variance, 1, atol=1e-3)


def test_a_start_that_is_refused_leaves_an_empty_folder(encoder, tmp_path):
  config = runs.read_config("prepare", vae__workdir=str(tmp_path / "missing"))
  workdir = tmp_path / "latents"
  with pytest.raises(job.UserError, match="holds no run"):
    prepare_main.main(config, str(workdir))
  config = runs.read_config(
    "prepare", vae__workdir=str(encoder[0]), data__digits__canvas=8
  )
  with pytest.raises(job.UserError, match="canvas=8"):
    prepare_main.main(config, str(workdir))
  for key, value, says in (
    ("records_per_shard", 0, "records_per_shard=0: set 1"),
    ("data.digits.num_frames", 6, "the nearest are 5 and 9"),
    ("data.digits.canvas", 18, "18x18 pixels does not fit"),
  ):
    config = runs.read_config(
      "prepare", vae__workdir=str(encoder[0]), **{key: value}
    )
    with pytest.raises(job.UserError, match=says):
      prepare_main.main(config, str(workdir))
  assert not list(workdir.iterdir())


def test_a_workdir_without_an_autoencoder_is_a_user_error(tmp_path):
  with pytest.raises(job.UserError, match=r"set --config\.vae\.workdir"):
    latents.prepare(runs.read_config("prepare"), tmp_path)
  with pytest.raises(job.UserError):
    restore.restore_vae(tmp_path / "missing")
  for stage, words in (("flow", "stage=flow"), ("vae", "train first")):
    folder = tmp_path / stage
    folder.mkdir()
    job.save_config(folder, runs.read_config(stage))
    with pytest.raises(job.UserError, match=words):
      restore.restore_vae(folder)
