"""Files of given frames: brought to size, encoded, told to the model."""

import functools
import logging

import jax
import numpy as np
import pytest

from goku_jax.data import video_io
from goku_jax.sample import codec as codecs
from goku_jax.sample import draw, given
from goku_jax.sample.restore import Restored, init_params, make_model
from goku_jax.typing import UserError
from tests import runs

PIXELS = codecs.Codec()


@pytest.fixture
def files(tmp_path):
  """A picture, another one and a clip of seven frames, of 16x16 pixels."""
  rng = np.random.default_rng(0)
  clip = rng.integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
  paths = {name: tmp_path / f"{name}.npz" for name in ("image", "last", "clip")}
  for name, video in zip(paths, (clip[:1], clip[-1:], clip), strict=True):
    video_io.write_video(paths[name], video, fps=8)
  return paths, clip


def test_frames_are_read_by_their_place(files):
  paths, clip = files
  found = given.read_frames(image=paths["image"], last_image=paths["last"])
  assert found.keys() == {0, -1}
  np.testing.assert_array_equal(found[0], clip[:1])
  np.testing.assert_array_equal(found[-1], clip[-1:])
  (run,) = given.read_frames(clip=paths["clip"]).values()
  np.testing.assert_array_equal(run, clip[:5])  # 4k+1
  assert not given.read_frames()


@pytest.mark.parametrize(
  ("asked", "message"),
  [
    (dict(clip="clip", image="image"), "give --clip, or --image"),
    (dict(last_image="last"), "goes with --image"),
    (dict(clip="clip", clip_frames=9), "has 7 frames, 9 are asked"),
    (dict(clip="clip", clip_frames=4), "not 4k"),
  ],
)
def test_files_that_do_not_go_together_are_refused(files, asked, message):
  paths, _ = files
  asked = {k: paths.get(v, v) for k, v in asked.items()}
  with pytest.raises(UserError, match=message):
    given.read_frames(**asked)


def test_another_aspect_is_cut_or_padded_and_said(caplog):
  video = np.full((1, 20, 40, 3), 200, np.uint8)
  video[:, :, :10] = 0
  with caplog.at_level(logging.WARNING):
    cut = given.fit(video, 16, 16, "crop")
  assert "20x40 have another aspect than 16x16: sample.fit=crop" in caplog.text
  assert cut.shape == (1, 16, 16, 3)
  assert cut.min() > 100  # the dark side is cut away
  padded = given.fit(video, 16, 16, "pad")
  assert padded.shape == (1, 16, 16, 3)
  assert not padded[:, :4].any()
  assert not padded[:, 12:].any()
  assert (padded[:, 5:11, 6:] > 100).all()
  assert given.fit(cut, 16, 16, "crop") is cut
  with pytest.raises(UserError, match="fit='squeeze' is not one of crop, pad"):
    given.fit(video, 16, 16, "squeeze")


def test_pixels_are_told_as_they_are(files):
  _, clip = files
  told = given.encode(PIXELS, (5, 16, 16, 3), {0: clip[:1], -1: clip[-1:]})
  want = clip / 127.5 - 1
  for t in range(4):
    np.testing.assert_allclose(told[t, ..., :3], want[0], atol=1e-6)
  np.testing.assert_allclose(told[4, ..., :3], want[-1], atol=1e-6)
  assert told[:, 0, 0, 3].tolist() == [1, 0, 0, 0, 1]


def test_frames_that_leave_nothing_to_draw_are_refused(files):
  _, clip = files
  with pytest.raises(UserError, match="5 given frames leave none to draw"):
    given.encode(PIXELS, (5, 16, 16, 3), {0: clip[:5]})


def run_of(**changes):
  config = runs.read_config(**changes)
  model = make_model(config, PIXELS)
  init = jax.jit(functools.partial(init_params, model))
  params = runs.stirred(init(jax.random.key(0)))
  return Restored(config, model, params, PIXELS, 0)


def test_what_is_given_steers_what_is_drawn(files):
  _, clip = files
  run = run_of(model__conditioned=True)
  draw_with = lambda frames: draw.draw(
    run,
    ["the digit two moves up"],
    num_frames=5,
    num_steps=2,
    guidance_scale=2.0,
    seed=0,
    given=frames,
  )[0]
  nothing = draw_with(None)
  np.testing.assert_array_equal(nothing, draw_with([{}]))
  assert (draw_with([{0: clip[:1]}]) != nothing).any()


def test_a_model_that_takes_none_says_so(files):
  _, clip = files
  with pytest.raises(UserError, match="not trained on given frames"):
    draw.draw(
      run_of(),
      ["the digit two moves up"],
      num_frames=5,
      num_steps=1,
      guidance_scale=1.0,
      seed=0,
      given=[{0: clip[:1]}],
    )
