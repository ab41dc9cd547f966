"""Prepared latents: whole or started again, in order, of unit variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from grain.sources import ArrayRecordDataSource

from goku_jax import checkpoint, job, weights
from goku_jax.data import digits, shards, sources, tokenize
from goku_jax.models import vae
from goku_jax.prepare import __main__ as prepare_main
from goku_jax.prepare import latents
from goku_jax.sample import restore
from tests import runs

NUM = 140  # more than are read at once, and no multiple of a chunk


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


def test_records_are_those_of_the_samples_in_order(encoder, prepared):
  _, model, params = encoder
  raw = digits.Digits(num_frames=5, canvas=16, num_samples=NUM)
  records = sources.Latents(prepared[0])
  std, mean = (
    np.array(records.manifest[k]) for k in ("latent_std", "latent_mean")
  )
  assert len(records) == NUM
  for i in range(NUM):
    frames = len(raw[i]["video"])
    assert tuple(records.shapes[i]) == ((frames - 1) // 4 + 1, 4, 4)
  for i in (0, 1, NUM - 1):  # alone, without padding
    video = jnp.asarray(raw[i]["video"][None] / 127.5 - 1, jnp.float32)
    alone = model.apply({"params": params}, video, method="encode")
    sample = records.read(i, 0)
    found = sample["mean"] * std + mean, sample["logvar"] + 2 * np.log(std)
    for ours, one in zip(found, alone, strict=True):
      np.testing.assert_allclose(ours, one[0], atol=1e-4)
    ids = tokenize.encode(raw[i]["caption"])
    np.testing.assert_array_equal(sample["text_ids"], ids)


def test_both_ends_of_a_clip_are_kept_encoded_alone(encoder, prepared):
  _, model, params = encoder
  raw = digits.Digits(num_frames=5, canvas=16, num_samples=NUM)
  names = [str(path) for path in sorted(prepared[0].glob("*.array_record"))]
  records = ArrayRecordDataSource(names)
  for i in (0, 1, 3):
    record = safetensors.numpy.load(records[i])
    video = raw[i]["video"]
    assert ("first_mean" in record) == (len(video) > 1)
    if len(video) == 1:
      continue
    for name, end in (("first", video[:1]), ("last", video[-1:])):
      frame = jnp.asarray(end[None] / 127.5 - 1, jnp.float32)
      alone = model.apply({"params": params}, frame, method="encode")
      for kind, one in zip(("mean", "logvar"), alone, strict=True):
        np.testing.assert_allclose(record[f"{name}_{kind}"], one[0], atol=1e-4)


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
  cut, asked = digits.Digits.cut, []

  def until_70(raw, index):
    if index == 70:
      raise KeyboardInterrupt
    return cut(raw, index)

  with monkeypatch.context() as patch:
    patch.setattr(digits.Digits, "cut", until_70)
    with pytest.raises(KeyboardInterrupt):
      latents.prepare(config_of(encoder), tmp_path)
  assert not (tmp_path / shards.MANIFEST).exists()
  with monkeypatch.context() as patch:
    patch.setattr(
      digits.Digits, "cut", lambda raw, i: asked.append(i) or cut(raw, i)
    )
    result = latents.prepare(config_of(encoder), tmp_path)
  assert min(asked) == 64  # two shards of 32 were whole
  assert len(asked) == NUM - 64
  assert contents(tmp_path) == contents(prepared[0])
  assert result["records"] == prepared[1]["records"]


def test_tasks_share_the_work_and_the_last_one_ends_it(
  encoder, prepared, tmp_path
):
  for task in (1, 0, 2):
    assert not (tmp_path / shards.MANIFEST).exists()
    result = latents.prepare(config_of(encoder), tmp_path, task, 3)
    assert result["whole"] == (task == 2)
  assert contents(tmp_path) == contents(prepared[0])
  with pytest.raises(job.UserError, match="task=3 is not one of 3"):
    latents.prepare(config_of(encoder), tmp_path, 3, 3)


def test_latents_that_are_not_finite_are_left_out(encoder, tmp_path):
  """Of an autoencoder with one weight that is none, all are."""
  broken = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), encoder[2])
  about = {"model": runs.read_config("vae").model.to_dict()}
  unknown = {"latent_mean": [0.0] * 4, "latent_std": [1.0] * 4}
  weights.save(tmp_path / "vae", broken, about | unknown)
  config = runs.read_config(
    "prepare",
    vae__workdir=str(tmp_path / "vae"),
    data__digits__num_samples=3,
  )
  with pytest.raises(job.UserError, match="3 of 3 items cannot be used"):
    prepare_main.main(str(tmp_path / "latents"), False, config)


def test_what_training_draws_has_unit_variance(prepared):
  source = sources.Latents(prepared[0])
  samples = [source.read(i, 0) for i in range(NUM)]
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
    prepare_main.main(str(workdir), False, config)
  config = runs.read_config(
    "prepare", vae__workdir=str(encoder[0]), data__digits__canvas=8
  )
  with pytest.raises(job.UserError, match="canvas=8"):
    prepare_main.main(str(workdir), False, config)
  for key, value, says in (
    ("items_per_shard", 0, "items_per_shard=0: set 1"),
    ("data.digits.num_frames", 6, "the nearest are 5 and 9"),
    ("data.digits.canvas", 18, "18x18 pixels does not fit"),
  ):
    config = runs.read_config(
      "prepare", vae__workdir=str(encoder[0]), **{key: value}
    )
    with pytest.raises(job.UserError, match=says):
      prepare_main.main(str(workdir), False, config)
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


@pytest.mark.parametrize(
  ("flags", "environment", "wanted"),
  [
    ((None, None), {}, (0, 1)),
    ((2, 5), {"SLURM_ARRAY_TASK_ID": "9"}, (2, 5)),
    ((None, None), dict(ID="7", MIN="5", MAX="8", COUNT="4"), (2, 4)),
    ((None, 9), dict(ID="7", MIN="7", MAX="7", COUNT="1"), (7, 9)),
    ((None, 4), {"JOB_COMPLETION_INDEX": "3"}, (3, 4)),
  ],
)
def test_a_task_is_told_by_flags_or_the_scheduler(flags, environment, wanted):
  names = {
    k if "_" in k else f"SLURM_ARRAY_TASK_{k}": v
    for k, v in environment.items()
  }
  assert prepare_main.read_task(*flags, names) == wanted


@pytest.mark.parametrize(
  ("flags", "environment", "says"),
  [
    ((1, None), {}, "set --task and --num_tasks"),
    ((None, 3), {}, "set --task and --num_tasks"),
    ((None, None), {"JOB_COMPLETION_INDEX": "3"}, "add --num_tasks=N"),
    (
      (None, None),
      {
        f"SLURM_ARRAY_TASK_{k}": v
        for k, v in dict(ID="4", MIN="0", MAX="10", COUNT="6").items()
      },
      "the SLURM array has gaps",
    ),
  ],
)
def test_half_of_what_tells_a_task_is_refused(flags, environment, says):
  with pytest.raises(job.UserError, match=says):
    prepare_main.read_task(*flags, environment)
