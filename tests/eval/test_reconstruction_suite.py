"""The suite measures what is in a folder, all of it, in little memory."""

import json
import shutil
import subprocess
import sys
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from goku_jax import job, weights
from goku_jax.data import transforms, video_io, videos
from goku_jax.eval import reconstruction_suite
from goku_jax.models import vae
from goku_jax.sample import restore
from goku_jax.sample.codec import to_uint8
from goku_jax.typing import UserError
from tests import runs

MODEL = vae.make_vae("debug")  # of stride 4x4x4
apply = jax.jit(MODEL.apply)
SETTINGS = dict(
  num_clips=0,
  clips_per_file=1,
  num_frames=9,
  size=(24, 32),
  scale=True,
  held_out=0.0,
  fps=0.0,
  frames="trim",
  chunk=0,
  tile=0,
  tile_error=False,
)


@pytest.fixture(scope="module")
def autoencoder():
  init = jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 1, 16, 16, 3)))
  params = runs.stirred(init["params"], 0.05)
  return restore.RestoredVAE(MODEL, {}, params, 3)


@pytest.fixture(scope="module")
def films(real_videos, tmp_path_factory):
  """A folder of two films."""
  folder = tmp_path_factory.mktemp("films")
  for name in ("bikes", "carphone_pristine"):
    shutil.copy(real_videos[name], folder)
  return folder


@pytest.fixture
def judge(autoencoder, tmp_path):
  """The suite, on a folder and with settings changed."""
  started = time.time()

  def run(data, *, fit=None, lpips_fn=None, **changes):
    return reconstruction_suite.run(
      autoencoder,
      data,
      tmp_path,
      fit=fit,
      lpips_fn=lpips_fn,
      started=started,
      **SETTINGS | changes,
    )

  return run


def test_the_files_agree_with_the_result(judge, films, tmp_path):
  distance = lambda real, made: np.full(len(real), 0.25)
  result = judge(films, fit=films, lpips_fn=distance)
  assert json.loads((tmp_path / "report.json").read_text()) == json.loads(
    json.dumps(result)
  )
  assert (result["num_clips"], result["num_frames"]) == (2, 18)
  for coder in ("autoencoder", "linear"):
    found = result[coder]
    assert len(found["psnr_by_frame"]) == 9
    assert found["psnr_first"] == found["psnr_by_frame"][0]
    assert 0 < found["ssim"] < 1
    assert found["lpips"] == 0.25
    assert found["flicker"] > 0
  # Fitted to what it codes, against a network that was never trained.
  assert result["linear"]["psnr"] > result["autoencoder"]["psnr"] + 5
  page = (tmp_path / "report.md").read_text()
  assert "not measured" not in page
  assert "--fit" not in page
  assert f"{result['linear']['psnr']:.2f}" in page
  with Image.open(tmp_path / "strip.png") as strip:
    # Two clips: original, and two coders with their differences.
    assert strip.height > 2 * 5 * 24


def test_figures_are_of_the_first_frames_of_each_film(
  judge, films, autoencoder
):
  """By the shortest way: read whole, through the model whole."""
  found = judge(films)["autoencoder"]
  psnr = []
  for path in video_io.list_videos(films):
    video = video_io.read_video(path)[0][: SETTINGS["num_frames"]]
    video = transforms.resize_to_cover(video, SETTINGS["size"])
    video = transforms.crop_centre(video, SETTINGS["size"], path)
    params, pixels = autoencoder.params, jnp.float32(video[None] / 127.5 - 1)
    made = to_uint8(np.asarray(apply({"params": params}, pixels)[0][0]))
    error = made.astype(float) - video
    psnr.append(10 * np.log10(255**2 / np.square(error).mean((1, 2, 3))))
  by_frame = np.mean(psnr, 0)
  np.testing.assert_allclose(found["psnr_by_frame"], by_frame, atol=1e-3)
  assert found["psnr"] == pytest.approx(np.mean(psnr), abs=1e-3)


def tile_psnr(films, autoencoder):
  """Of reconstructions by tiles against those of whole frames."""
  options = reconstruction_suite.check_settings((4, 4, 4), **SETTINGS)
  files = video_io.list_videos(films)
  psnr = []
  for _, real, _ in reconstruction_suite.read_clips(
    files, (4, 4, 4), options, ""
  ):
    whole, tiles = (
      reconstruction_suite.through(
        MODEL, autoencoder.params, real, options._replace(tile=tile)
      )[0]
      for tile in (0, 16)
    )
    error = np.square(tiles.astype(float) - whole).mean((1, 2, 3))
    psnr.append(10 * np.log10(255**2 / error))
  return np.mean(psnr)


def test_chunks_change_no_figure_and_tiles_little(
  judge, films, autoencoder, tmp_path
):
  whole = judge(films)["autoencoder"]
  chunks = judge(films, chunk=4)["autoencoder"]
  result = judge(films, tile=16, tile_error=True)
  tiles = result["autoencoder"]
  assert chunks["psnr"] == pytest.approx(whole["psnr"], abs=1e-3)
  assert chunks["flicker"] == pytest.approx(whole["flicker"], rel=1e-3)
  assert tiles["psnr"] == pytest.approx(whole["psnr"], abs=1)
  assert tiles["psnr"] != whole["psnr"]
  assert result["whole"]["psnr"] == pytest.approx(whole["psnr"], abs=1e-3)
  assert result["tile_psnr"] == pytest.approx(tile_psnr(films, autoencoder))
  page = (tmp_path / "report.md").read_text()
  assert f"Tiles are {result['tile_psnr']:.2f} dB from whole frames" in page


def test_any_size_is_judged_at_that_size(judge, films, tmp_path):
  folder = tmp_path / "mixed"
  folder.mkdir()
  video = video_io.read_video(films / "carphone_pristine.mp4")[0]
  image = Image.fromarray(video[0])
  image.crop((0, 0, 30, 23)).save(folder / "odd.png")
  image.crop((0, 0, 1, 1)).save(folder / "tiny.png")
  image.crop((0, 0, 32, 21)).save(folder / "photo.jpg")
  video_io.write_video(folder / "six.npz", video[:6, :22, :30])
  video_io.write_video(folder / "seven.gif", video[:7, :24, :32])
  result = judge(folder, fit=folder, size=(0, 0))
  assert (result["num_clips"], result["num_frames"]) == (5, 3 + 5 + 5)
  assert result["num_trimmed"] == 2
  assert "2 clips lost frames" in (tmp_path / "report.md").read_text()
  assert result["autoencoder"]["psnr_by_frame"][5:] == [None] * 4
  assert result["autoencoder"]["flicker"] > 0
  with pytest.raises(UserError, match=r"seven\.gif: a clip of 7 frames is not"):
    judge(folder, size=(0, 0), frames="refuse")


@pytest.mark.parametrize("sides", [(1, 1), (23, 30), (24, 32)])
def test_a_reconstruction_has_the_sides_of_its_clip(autoencoder, sides):
  video = np.full((5, *sides, 3), 77, np.uint8)
  options = reconstruction_suite.check_settings((4, 4, 4), **SETTINGS)
  made, mean, _ = reconstruction_suite.through(
    MODEL, autoencoder.params, video, options
  )
  assert made.shape == video.shape
  assert mean.shape == (2, *(-(-side // 4) for side in sides), 4)


def test_a_diverged_autoencoder_is_no_figure(autoencoder, films, tmp_path):
  params = jax.tree.map(lambda x: x * np.nan, autoencoder.params)
  broken = autoencoder._replace(params=params)
  with pytest.raises(UserError, match="pixels that are not finite"):
    reconstruction_suite.run(broken, films, tmp_path, started=0.0, **SETTINGS)


def test_what_was_not_given_is_said(judge, films, tmp_path):
  result = judge(films, num_clips=1)
  assert result["num_clips"] == 1
  assert "linear" not in result
  assert "lpips" not in result["autoencoder"]
  page = (tmp_path / "report.md").read_text()
  assert "LPIPS was not measured" in page
  assert "--fit=FOLDER" in page


def test_clips_come_evenly_from_all_files(judge, tmp_path):
  for i in range(9):
    video = np.full((20, 4, 4, 3), 20 * i, np.uint8)
    video_io.write_video(tmp_path / f"data/{i}.npz", video)
  options = lambda **changes: reconstruction_suite.check_settings(
    (4, 4, 4), **SETTINGS | changes
  )

  def read(**changes):
    wanted = options(**changes)
    files = reconstruction_suite.find_files(
      tmp_path / "data", wanted, "held_out"
    )
    clips = reconstruction_suite.read_clips(files, (4, 4, 4), wanted, "")
    return [(int(path.stem), len(video)) for path, video, _ in clips]

  assert read() == [(i, 9) for i in range(9)]
  assert read(num_clips=3) == [(0, 9), (4, 9), (8, 9)]
  twice = [(0, 9), (0, 9), (8, 9)]
  assert read(num_clips=3, clips_per_file=2) == twice
  assert len(read(clips_per_file=5)) == 18
  held_out = videos.Videos(
    tmp_path / "data", "held_out", num_frames=5, crop=4, held_out=0.5
  )
  wanted = [(int(shot.path.stem), 9) for shot in held_out.shots]
  assert 0 < len(wanted) < 9
  assert read(held_out=0.5) == wanted


def test_memory_does_not_grow_with_the_number_of_clips(judge, tmp_path):
  rng = np.random.default_rng(0)
  data = tmp_path / "data"
  for i in range(8):
    video = rng.integers(0, 256, (9, 48, 64, 3), np.uint8)
    video_io.write_video(data / f"{i}.npz", video)
  run = lambda num: judge(data, fit=data, num_clips=num, size=(48, 64))

  def peak(num):
    tracemalloc.start()
    run(num)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most

  run(3)  # imports and compiles; as many are kept for the strip
  # Five more clips are not held; what small objects cost is not counted.
  assert peak(8) < peak(3) + 2 * video.nbytes


@pytest.mark.parametrize(
  ("video", "says"),
  [
    (np.zeros((5, 8, 8, 3), np.uint16), "not uint16"),
    (np.full((5, 8, 8, 3), 3.0, np.float32), "float32 pixels from 3 to 3"),
    (np.full((5, 8, 8, 3), np.nan), "pixels that are NaN"),
    (np.zeros((5, 8, 8), np.uint8), "a video is"),
  ],
)
def test_pixels_of_another_range_name_the_file(judge, tmp_path, video, says):
  (tmp_path / "data").mkdir()
  np.savez(tmp_path / "data/bad.npz", video=video, fps=8.0)
  with pytest.raises(UserError, match=rf"bad\.npz: .*{says}"):
    judge(tmp_path / "data")


@pytest.mark.parametrize(
  "changes",
  [
    dict(num_clips=-1),
    dict(clips_per_file=0),
    dict(num_frames=0),
    dict(size=(0, 8)),
    dict(size=(-8, 8)),
    dict(held_out=1.0),
    dict(fps=-1.0),
    dict(frames="pad"),
    dict(chunk=6),
    dict(tile=10),
    dict(tile=12),
    dict(tile_error=True),
  ],
)
def test_a_wrong_setting_is_one_line(judge, films, changes):
  (name,) = changes
  with pytest.raises(UserError, match=f"evals.reconstruction.{name}="):
    judge(films, **changes)


def test_a_setting_that_is_missing_or_unknown_is_named():
  wrong = {k: v for k, v in SETTINGS.items() if k != "tile"} | {"tiles": 3}
  with pytest.raises(UserError, match="tile, tiles missing or unknown"):
    reconstruction_suite.check_settings((4, 4, 4), **wrong)


def test_a_folder_of_weights_is_judged_as_its_run(autoencoder, tmp_path):
  stats = {"latent_mean": [0.0] * 4, "latent_std": [1.0] * 4}
  config = {"model": {"variant": "debug"}, **stats}
  weights.save(tmp_path, jax.device_get(autoencoder.params), config)
  found = restore.restore_vae(tmp_path)
  assert found.step is None
  assert found.model.config == MODEL.config
  jax.tree.map(np.testing.assert_array_equal, found.params, autoencoder.params)


@pytest.mark.parametrize(
  ("stage", "args", "says"),
  [
    ("vae", ["--suite=reconstruction"], "missing --data"),
    (
      "flow",
      ["--data=x"],
      "--data, --fit and --lpips are for --suite=reconstruction",
    ),
    (
      "flow",
      ["--suite=reconstruction", "--data=x"],
      "this needs one of stage=vae",
    ),
    (
      "weights",
      ["--suite=reconstruction", "--data=x"],
      "has no evals.reconstruction: give --config=FILE.py of an experiment"
      " that has, as configs/reconstruction.py",
    ),
    (
      "vae",
      ["--suite=reconstruction", "--data=x", "--weights=mean"],
      "weights='mean' is not one of ema, params",
    ),
  ],
)
def test_a_mistake_is_one_line(tmp_path, stage, args, says):
  if stage == "weights":
    weights.save(tmp_path, {"a": np.zeros(1)}, {"model": {}})
  else:
    job.save_config(tmp_path, runs.read_config(stage))
  done = subprocess.run(
    [sys.executable, "-m", "goku_jax.eval", f"--workdir={tmp_path}", *args],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert says in done.stderr
  assert done.stderr.count("\n") == 1
