"""Distances between what a run draws and what is real, by whole suites.

The weights of VGG16 are real; of the others random ones of a seed stand in, in
folders as `convert` writes them, since the real ones are not to be had here.
"""

import jax
import numpy as np
import pytest

from goku_jax import config, weights
from goku_jax.convert import formats
from goku_jax.data import video_io
from goku_jax.eval import clip_score, distances, judges, samples, statistics
from goku_jax.models.judges import c3d, i3d, inception
from goku_jax.sample import restore
from goku_jax.sample.codec import Codec
from goku_jax.typing import UserError
from tests import clip_folder, runs


@pytest.fixture(scope="module")
def run():
  """A model that was never trained."""
  config = runs.read_config()
  return restore.Restored(config, *runs.flow_model(), Codec(), 7)


def distance_settings(suite="vgg16", **changes):
  found = config.read_config(f"{runs.ROOT}/configs/distances.py").evals[suite]
  return found.to_dict() | dict(num_samples=12, num_steps=2) | changes


def test_distances_are_of_real_weights_and_name_what_they_are_of(
  run, lpips_weights, tmp_path
):
  settings = distance_settings(weights=str(lpips_weights))
  found = distances.run_vgg16(run, settings)
  assert found["vgg16"]["frechet_distance"] > 1
  assert (found["num_samples"], found["num_real"]) == (12, 12)
  assert (found["network"], found["resize"]) == ("lpips_vgg16", "none")
  assert len(found["weights"]) == 64
  # Real pictures out of files are nearer to real ones than what it draws.
  for i, video in enumerate(samples.real(run, settings | {"seed": 5})):
    video_io.write_video(tmp_path / f"{i}.png", video, fps=1)
  judge = judges.load_vgg(lpips_weights)
  read = lambda **more: distances.read(
    judge, samples.real(run, settings | more), distances.first_frame
  )[0]["features"]
  real, same = read(reference=str(tmp_path)), read()
  fit = statistics.fit
  between = statistics.frechet_distance(fit(real), fit(same))
  assert between < 0.5 * found["vgg16"]["frechet_distance"]


@pytest.mark.parametrize("name", distances.RUN)
def test_missing_weights_are_one_line_that_says_where_from(name, run):
  settings = distance_settings(name)
  with pytest.raises(
    UserError, match=r"has no weights of \w+\. Bring .* by py"
  ):
    distances.RUN[name](run, settings)


@pytest.mark.parametrize("count", [2, distances.AT_ONCE + 1])
def test_pictures_of_two_sizes_are_refused(lpips_weights, count):
  judge = judges.load_vgg(lpips_weights)
  videos = [np.zeros((1, 16, 16, 3), np.uint8)] * (count - 1)
  videos.append(np.zeros((1, 16, 32, 3), np.uint8))
  with pytest.raises(
    UserError, match=r"of 16x16 and of 16x32 .* do not go tog"
  ):
    distances.read(judge, videos, distances.first_frame)


def test_drawn_and_real_pictures_have_one_size(run, lpips_weights, tmp_path):
  for i in range(2):
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    video_io.write_video(tmp_path / f"{i}.png", picture, fps=1)
  settings = distance_settings(
    weights=str(lpips_weights), reference=str(tmp_path)
  )
  with pytest.raises(UserError, match="of 32x32 and of 16x16 pixels do not"):
    distances.run_vgg16(run, settings)


def test_references_are_read_once_for_all_checkpoints(
  run, lpips_weights, tmp_path
):
  for i in range(8):
    picture = np.full((1, 16, 16, 3), 30 * i, np.uint8)
    video_io.write_video(tmp_path / f"{i}.png", picture, fps=1)
  settings = distance_settings(
    weights=str(lpips_weights), reference=str(tmp_path)
  )
  found = distances.run_vgg16(run, settings)
  for path in tmp_path.iterdir():
    path.unlink()
  assert distances.run_vgg16(run, settings) == found
  with pytest.raises(UserError, match="holds no video or picture"):
    distances.run_vgg16(run, settings | {"seed": 1})


def test_fewer_frames_drawn_than_compared_are_refused(run):
  settings = distance_settings("fvd", num_frames=13)
  with pytest.raises(
    UserError, match="num_frames=13 drawn are fewer than clip"
  ):
    distances.run_fvd(run, settings)


def test_clip_score_compares_each_video_with_its_own_caption(run, tmp_path):
  theirs = clip_folder.write(tmp_path / "theirs")
  formats.convert(theirs, "clip", tmp_path / "ours", reverse=False)
  settings = distance_settings(
    "clip_score", weights=str(tmp_path / "ours"), num_frames=5
  )
  found = distances.run_clip_score(run, settings)
  judge = clip_score.load(tmp_path / "ours")
  captions, _ = samples.conditions(run, settings)
  cosines = judge.cosines(
    samples.drawn(run, settings), captions[:12], prefix="A photo depicts "
  )
  wanted = clip_score.score(cosines, "hessel")
  assert found["clip_score"] == {"mean": pytest.approx(wanted)}
  assert (found["num_samples"], found["num_frames"]) == (12, 60)
  assert found["scaling"] == "hessel"


def random_weights(folder, network):
  """A folder of random weights, at a scale that keeps features alive."""
  abstract = {"inception_fid": inception, "i3d": i3d, "c3d": c3d}[
    network
  ].abstract_params()
  rng = np.random.default_rng(0)

  def draw(keys, leaf):
    name = keys[-1].key
    if name == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      return rng.standard_normal(leaf.shape, "f4") * np.sqrt(2 / fan_in)
    return np.full(leaf.shape, name in ("scale", "var"), np.float32)

  params = jax.tree.map_with_path(draw, abstract)
  about = {"network": network, "source_sha256": "0" * 64, "bn_eps": 1e-3}
  weights.save(folder, params, about)
  return str(folder)


def films(folder, *sizes, num_frames=20):
  rng = np.random.default_rng(0)
  for i, size in enumerate(sizes):
    video = rng.integers(0, 256, (num_frames, *size, 3), dtype=np.uint8)
    video_io.write_video(folder / f"{i}.npz", video, fps=25)
  return str(folder)


def test_real_clips_begin_anywhere_and_have_one_size(tmp_path):
  films(tmp_path, (32, 48), (40, 40), (32, 32))
  video_io.write_video(tmp_path / "a.npz", np.zeros((9, 8, 8, 3), "u1"), fps=25)
  ask = lambda **more: [
    *samples.real_clips(
      tmp_path, (16, 24), 16, **dict(count=0, fps=0.0, seed=0) | more
    )
  ]
  clips = ask()
  assert [clip.shape for clip in clips] == [(16, 16, 24, 3)] * 3  # a is short
  np.testing.assert_array_equal(clips, ask())
  assert any((a != b).any() for a, b in zip(clips, ask(seed=1), strict=True))
  assert not ask(fps=12.5)  # ten frames a file
  assert len(ask(count=3)) == 2  # of which a is one


@pytest.mark.slow
def test_fid_has_the_figures_of_adm(run, tmp_path):
  folder = random_weights(tmp_path, "inception_fid")
  settings = distance_settings("fid", weights=folder)
  found = distances.run_fid(run, settings)
  score = found["fid"].pop("inception_score")
  assert score == "needs a multiple of 5000 samples"
  assert found["fid"].keys() == {"fid", "sfid", "precision", "recall"}
  assert all(np.isfinite(value) for value in found["fid"].values())
  assert found["num_samples"] == "12 of 50000"
  assert (found["protocol"], found["resize"]) == ("adm", "tf1")
  # Against its own statistics, and as published files have them.
  made, _ = distances.read(
    judges.load_inception(folder),
    samples.drawn(run, settings),
    distances.first_frame,
  )
  fits = [statistics.fit(made[name]) for name in ("pool3", "spatial")]
  names = ("mu", "sigma", "mu_s", "sigma_s")
  arrays = [x for fit in fits for x in (fit.mean, fit.covariance)]
  path = tmp_path / "reference.npz"
  np.savez(path, **dict(zip(names, arrays, strict=True)))
  same = distances.run_fid(run, settings | {"reference": str(path)})["fid"]
  del same["inception_score"]
  assert same.keys() == {"fid", "sfid"}  # no pictures, no precision
  assert max(map(abs, same.values())) < 1e-3 * found["fid"]["fid"]


@pytest.mark.slow
def test_ucf101_has_a_video_score_and_a_distance_at_each_size(run, tmp_path):
  (tmp_path / "real").mkdir()
  reference = films(tmp_path / "real", *[(24, 32)] * 3)
  captions = tmp_path / "captions.txt"
  captions.write_text("the digit one moves left\nthe digit two stays still\n")
  settings = distance_settings(
    "ucf101",
    reference=reference,
    prompts=str(captions),
    sizes=((16, 16), (12, 18)),  # 18 is drawn as 20, and cropped
    **{name: random_weights(tmp_path / name, name) for name in ("i3d", "c3d")},
  )
  found = distances.run_ucf101(run, settings)
  sizes = {"16x16", "12x18"}
  assert found["fvd"].keys() == found["inception_score"].keys() == sizes
  assert all(value > 0 for value in found["fvd"].values())
  assert all(1 <= value <= 101 for value in found["inception_score"].values())
  assert (found["num_samples"], found["num_real"]) == ("12 of 13320", 3)
  assert (found["clip_frames"], found["fps"]) == (16, "of the files")
  assert found["network"] == "i3d"
  assert found["inception_score_network"] == "c3d"
  one = distances.run_fvd(
    run,
    distance_settings(
      "fvd",
      reference=reference,
      prompts=str(captions),
      weights=settings["i3d"],
      size=(16, 16),
    ),
  )
  assert one["fvd"]["fvd"] == pytest.approx(found["fvd"]["16x16"], rel=1e-6)
  assert np.isfinite(one["fvd"]["kvd"])
