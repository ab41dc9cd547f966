"""Files beside the step or latents before it: the same samples and loss."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from goku_jax import checkpoint, job, weights
from goku_jax import config as configs
from goku_jax.data import packing, schema, shards, video_io
from goku_jax.models import vae
from goku_jax.parallel import mesh as meshes
from goku_jax.prepare import __main__ as prepare_main
from goku_jax.prepare import latents
from goku_jax.sample import draw, restore
from goku_jax.train import flow_task
from goku_jax.typing import UserError
from tests import runs
from tests.sample import test_text

VIDEOS, PICTURES = 5, 4


def read_config(arg, **overrides):
  found = configs.read_config(f"{runs.ROOT}/configs/clips.py:debug,{arg}")
  with found.unlocked():
    found.update_from_flattened_dict(
      {key.replace("__", "."): value for key, value in overrides.items()}
    )
  return found.lock()


def write_media(folder, seed=0):
  """Videos of two shapes, and pictures, with captions beside them."""
  rng = np.random.default_rng(seed)
  for i in range(VIDEOS + PICTURES):
    frames, suffix = (7, "mp4") if i < VIDEOS else (1, "png")
    size = (16, 64) if i % 2 else (32, 32)
    small = rng.integers(0, 255, (frames, size[0] // 8, size[1] // 8, 3))
    video = small.astype(np.uint8).repeat(8, 1).repeat(8, 2)
    video_io.write_video(folder / f"{i}.{suffix}", video, fps=24)
    (folder / f"{i}.txt").write_text(f"noise number {i}")
  return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  return write_media(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  """A workdir of an untrained autoencoder, which has no statistics."""
  folder = tmp_path_factory.mktemp("vae")
  config = runs.read_config("vae")
  job.save_config(folder, config)
  init = jax.jit(vae.make_vae(**config.model).init)
  params = init(jax.random.key(0), np.zeros((1, 1, 16, 16, 3)))["params"]
  with checkpoint.Checkpointer(folder / "checkpoints") as checkpointer:
    checkpointer.save(2, {"ema": params}, {})
  return folder


def write_encoder(folder, seed):
  """FLAN-T5 in small, with random weights."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(test_text.CONFIG))
  tensors = test_text.random_tensors(seed=seed)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  test_text.tokenizer_json().save(str(folder / "tokenizer.json"))
  return folder


@pytest.fixture(scope="module")
def prepared(files, encoder, tmp_path_factory):
  folder = tmp_path_factory.mktemp("latents")
  config = read_config(
    "stage=prepare", data__path=str(files), vae__workdir=str(encoder)
  )
  return folder, latents.prepare(config, folder)


def make_task(config):
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  return flow_task.make_task(config, mesh)


def config_of(arg="", **more):
  small = dict(data__num_packs=2, data__pack__tokens=64)
  return read_config(arg, **small | more)


def uncached(files, autoencoder, **more):
  more = dict(data__augment=False) | more
  return config_of(
    "cached=false", data__path=str(files), vae__workdir=str(autoencoder), **more
  )


def test_prepare_takes_files_as_they_are(prepared):
  folder, result = prepared
  assert (result["items"], result["dropped"]) == (VIDEOS + PICTURES, 0)
  assert result["shards"] == 3
  assert sum(result["shapes"].values()) == VIDEOS + PICTURES
  assert result["seconds"] == pytest.approx(VIDEOS * 5 / 24)
  assert set(result["shapes"]) == {"2x4x16", "2x8x8", "1x4x16", "1x8x8"}
  assert (folder / shards.DROPPED).read_text() == ""


def test_more_than_may_be_left_out_stops_with_a_table(
  encoder, tmp_path, capsys
):
  files, workdir = tmp_path / "files", tmp_path / "latents"
  files.mkdir()
  write_media(files)
  (files / "torn.mp4").write_bytes(b"no film")
  config = read_config(
    "stage=prepare", data__path=str(files), vae__workdir=str(encoder)
  )
  with pytest.raises(UserError, match="1 of 10 items cannot be used, more tha"):
    prepare_main.main(str(workdir), False, config)
  assert "(as torn.mp4)" in capsys.readouterr().out
  assert not (workdir / shards.MANIFEST).exists()
  config = read_config(
    "stage=prepare",
    data__path=str(files),
    vae__workdir=str(encoder),
    max_dropped=0.1,
  )
  result = prepare_main.main(str(workdir), False, config)
  assert (result["items"], result["records"], result["dropped"]) == (10, 9, 1)


def test_shards_are_looked_at(prepared, capsys):
  folder, result = prepared
  found = prepare_main.main(str(folder), True)
  assert found["records"] == result["records"]
  assert "1x8x8" in capsys.readouterr().out
  sheet = video_io.read_video(folder / "contact_sheet.png")[0]
  assert sheet.std() > 10
  (folder / "contact_sheet.png").unlink()
  with pytest.raises(UserError, match="holds no whole shard"):
    prepare_main.main(str(folder / "vae"), True)


def test_cached_and_uncached_give_the_same_batch_and_loss(prepared, files):
  """By the statistics that came with the prepared latents."""
  cached = make_task(config_of(data__path=str(prepared[0])))
  fresh = make_task(uncached(files, prepared[0] / "vae"))
  try:
    one, two = next(cached.batches(0)), next(fresh.batches(0))
  finally:
    fresh.close()
  assert (one["sample_index_BG"] >= 0).sum() > 3
  for name in one:
    np.testing.assert_allclose(one[name], two[name], atol=1e-4, err_msg=name)
  rng = jax.random.key(0)
  params = runs.stirred(jax.jit(cached.init_params)(rng), 0.02)
  losses = [
    jax.jit(functools.partial(task.loss_fn))(params, batch, rng)[0]
    for task, batch in ((cached, one), (fresh, two))
  ]
  np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_run_on_files_carries_what_it_measured(encoder, tmp_path):
  files, workdir = tmp_path / "files", tmp_path / "run"
  files.mkdir()
  workdir.mkdir()
  write_media(files)
  for name in ("first", "again", "changed"):
    if name == "changed":
      (files / "9.png").write_bytes((files / "8.png").read_bytes())
    task = make_task(uncached(files, encoder))
    task.close()
    if name == "changed":
      with pytest.raises(UserError, match="holds other latents than this run"):
        task.settle(workdir)
    else:
      task.settle(workdir)
  about = weights.load(workdir / "vae")[1]
  assert len(about["latent_mean"]) == len(about["latent_std"]) == 4
  identity = json.loads((workdir / "latents.json").read_text())
  assert set(identity) == {"source", "vae"}
  assert (workdir / shards.DROPPED).read_text() == ""


def test_what_cannot_be_read_is_left_out_and_counted(encoder, tmp_path, capsys):
  """Files that were well when they were probed, and are torn since."""
  folder = tmp_path / "files"
  folder.mkdir()
  write_media(folder, seed=1)
  task = make_task(uncached(folder, encoder, max_dropped=0.2))
  try:
    for name in ("0.mp4", "1.mp4"):
      path = folder / name
      path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="2 of 9 samples cannot be read"):
      list(task.batches(0))
  finally:
    task.close()
  out = capsys.readouterr().out
  assert "left out: 0.mp4 at" in out or "left out: 1.mp4 at" in out


def test_too_many_shapes_and_too_few_files_are_refused(
  files, encoder, tmp_path
):
  with pytest.raises(UserError, match="the clips have 4 shapes, and each com"):
    make_task(uncached(files, encoder, data__max_shapes=3))
  (tmp_path / "torn.mp4").write_bytes(b"nothing")
  with pytest.raises(UserError, match="0 batches: none of the 1 items"):
    make_task(uncached(tmp_path, encoder))
  write_media(tmp_path)
  with pytest.raises(UserError, match="1 of 10 items cannot be used"):
    make_task(uncached(tmp_path, encoder))


def test_shares_are_exact_over_windows(prepared):
  config = config_of(
    data__path=f"{prepared[0]},{prepared[0]}",
    data__weights="3,1",
    data__image_share=0.75,
    data__lookahead=32,
    total_steps=200,
  )
  task = make_task(config)
  seen = np.zeros((2, 2), int)
  total = 0
  for batch in task.batches(0):
    for pack in packing.unpack(batch, patch_size=(1, 2, 2)):
      for sample in pack:
        if total < 32 * 3:  # windows
          kind = int(len(sample["mean"]) > 1)
          seen[kind, sample["index"] // (VIDEOS + PICTURES)] += 1
        total += 1
    if total >= 32 * 3:
      break
  # Packs of a window lie together, so the first three windows are these.
  np.testing.assert_array_equal(seen, [[54, 18], [18, 6]])


def test_what_must_be_given_is_asked_for(files):
  with pytest.raises(UserError, match=r"set --config\.data\.path to a folder"):
    make_task(config_of())
  with pytest.raises(UserError, match=r"set --config\.vae\.workdir: training"):
    make_task(config_of("cached=false", data__path=str(files)))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(data__weights="1,2"), "set 1 numbers above 0"),
    (dict(data__weights="x"), "data.weights='x': set numbers"),
    (dict(data__image_share=1.5), "image_share=1.5 is not between"),
  ],
)
def test_shares_that_nothing_can_follow_are_refused(prepared, changes, says):
  with pytest.raises(UserError, match=says):
    make_task(config_of(data__path=str(prepared[0]), **changes))


def test_preflight_tells_what_there_is(prepared, capsys):
  config = config_of(data__path=str(prepared[0]))
  make_task(config).preflight(3)
  lines = capsys.readouterr().out.splitlines()
  assert lines[1].split()[:3] == ["9", "4", "5"]
  assert "seen before step 3" in lines[1]
  assert any(line.split() == ["3", "2x8x8"] for line in lines)
  assert "packs of 64 tokens a step" in lines[-2]
  assert "TFLOPs a step" in lines[-1]


def test_a_frozen_text_encoder_steers_from_files_to_a_drawn_clip(
  files, encoder, tmp_path
):
  """Prepare embeds, training reads, sampling embeds; another is refused."""
  text = write_encoder(tmp_path / "t5", seed=0)
  other = write_encoder(tmp_path / "other", seed=1)
  latent_folder, run = tmp_path / "latents", tmp_path / "run"
  given = dict(text__path=str(text), text__dtype="float32")
  config = read_config(
    "stage=prepare", data__path=str(files), vae__workdir=str(encoder), **given
  )
  latent_folder.mkdir()
  run.mkdir()
  latents.prepare(config, latent_folder)
  more = dict(data__path=str(latent_folder), model__text_width=32)
  config = config_of("text=t5", **more, **given)
  task = make_task(config)
  batch = next(task.batches(0))
  rows = batch["text_embeddings_BSE"]
  assert rows.shape[-1] == 32
  empty = batch["text_segment_ids_BS"] == schema.EMPTY_CAPTION
  null = restore.load_text(config.text).encode([""])[0]
  np.testing.assert_allclose(rows[empty], null.repeat(2, 0), atol=1e-2)
  params = jax.jit(task.init_params)(jax.random.key(0))
  assert "text" not in params
  task.settle(run)
  job.save_config(run, config)
  with checkpoint.Checkpointer(run / "checkpoints") as checkpointer:
    checkpointer.save(1, {"ema": params}, {})
  restored = restore.restore(run)
  asked = config.sample.to_dict() | dict(num_steps=1)
  prompts = list(asked.pop("prompts"))
  asked["labels"] = asked.pop("class_labels") or None
  del asked["fit"]
  videos = draw.draw(restored, prompts, **asked)
  assert [video.shape for video in videos] == [(5, 32, 32, 3)] * 2
  with pytest.raises(UserError, match="is not the text encoder that"):
    restore.restore(run, text_encoder=str(other))
  with pytest.raises(UserError, match="is not the text encoder that embedded"):
    make_task(config_of("text=t5", **more, text__path=str(other)))
  with pytest.raises(UserError, match=r"set --config\.text\.path to its"):
    make_task(config_of("text=t5", **more))
