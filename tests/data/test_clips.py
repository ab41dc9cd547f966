"""Clips: of the right shapes and times, cut from real files, or a reason."""

import numpy as np
import pytest

from goku_jax.data import clips, items, tokenize, video_io
from goku_jax.data.decoder import Decoder
from goku_jax.data.media import Unreadable
from goku_jax.typing import UserError

SETTINGS = dict(
  fps=8.0,
  min_frames=5,
  max_frames=9,
  step_frames=4,
  pictures=True,
  pixels=64 * 64,
  multiple=16,
  clips_per_file=1,
  captions="optional",
  motion_score=True,
)


def clock(frames, size=(64, 96)):
  """A video whose frame i is 8 i bright, so that a frame tells its time."""
  levels = 8 * np.arange(frames, dtype=np.uint8)
  return np.broadcast_to(levels[:, None, None, None], (frames, *size, 3)).copy()


@pytest.fixture(scope="module")
def decoder():
  with Decoder(1) as pool:
    yield pool


@pytest.fixture
def folder(tmp_path):
  """A video at 16 a second, one at 4, a picture, and one of 3 frames."""
  video_io.write_video(tmp_path / "fast.mp4", clock(30), fps=16)
  video_io.write_video(tmp_path / "slow.mp4", clock(7), fps=4)
  video_io.write_video(tmp_path / "still.png", clock(1, (40, 200)))
  video_io.write_video(tmp_path / "tiny.mp4", clock(3), fps=8)
  (tmp_path / "fast.json").write_text(
    '{"captions": {"short": "a clock", "dense": "a grey clock, brighter"},'
    ' "motion_score": 4.25}'
  )
  return tmp_path


def open_clips(folder, decoder, **changes):
  found = items.open_items(str(folder))
  return clips.Clips(found, decoder, **SETTINGS | changes)


def names(found):
  return {found.key(i): i for i in range(len(found))}


@pytest.mark.parametrize(
  ("given", "pixels", "wanted"),
  [
    ((720, 1280), 288 * 512, (288, 512)),  # the cascade
    ((1280, 720), 288 * 512, (512, 288)),
    ((1080, 1920), 480 * 864, (480, 864)),
    ((1080, 1920), 720 * 1280, (720, 1280)),
    ((100, 100), 288 * 512, (96, 96)),  # never enlarged
    ((16, 16), 64 * 64, (16, 16)),
    ((15, 4000), 64 * 64, None),
    ((20, 4000), 64 * 64, (16, 256)),
    ((4000, 20), 64 * 64, (256, 16)),
  ],
)
def test_sizes_fit_the_budget_and_the_file(given, pixels, wanted):
  assert clips.fit(*given, pixels, 16) == wanted


def kept(h, w, H, W):
  """Pixels of a size times the share of the picture that it shows."""
  return h * w * min(h * W / (w * H), w * H / (h * W))


def test_every_size_is_allowed_and_few_keep_a_little_more():
  """Against all sizes that there are."""
  rng = np.random.default_rng(0)
  pixels, multiple = 96 * 96, 16
  sides = range(multiple, 300, multiple)
  for _ in range(200):
    H, W = rng.integers(16, 300, 2).tolist()
    h, w = clips.fit(H, W, pixels, multiple)
    assert h % multiple == w % multiple == 0
    assert h <= H
    assert w <= W
    assert h * w <= pixels
    allowed = [
      kept(a, b, H, W)
      for a in sides
      for b in sides
      if a <= H and b <= W and a * b <= pixels
    ]
    if 0.5 < H / W < 2:
      assert kept(h, w, H, W) > 0.9 * max(allowed)


def test_frames_are_left_out_to_the_rate_and_never_repeated(folder, decoder):
  found = open_clips(folder, decoder)
  index = names(found)
  (fast,) = found.cut(index["fast.mp4"])
  (window,) = found.look(index["fast.mp4"])[0]
  assert (window.frames, window.fps, window.size) == (9, 8.0, (48, 80))
  levels = fast["video"].mean((1, 2, 3)) / 8
  # 30 frames at 16 are 15 at 8, of which the middle 9 are taken.
  first = window.begin * 16
  assert first == pytest.approx(6)
  np.testing.assert_allclose(levels, first + 2 * np.arange(9), atol=0.3)
  (slow,) = found.cut(index["slow.mp4"])
  assert slow["about"]["fps"] == 4.0
  assert np.diff(slow["video"].mean((1, 2, 3))).min() > 4


def test_a_file_of_one_frame_is_a_picture(folder, decoder):
  found = open_clips(folder, decoder)
  (still,) = found.cut(names(found)["still.png"])
  assert still["video"].shape == (1, 32, 128, 3)
  assert still["about"]["seconds"] == 0
  with pytest.raises(Unreadable, match="one frame, and pictures=false"):
    open_clips(folder, decoder, pictures=False).cut(names(found)["still.png"])


def test_what_gives_no_clip_says_why(folder, decoder):
  found = open_clips(folder, decoder)
  with pytest.raises(Unreadable, match="3 frames at 8 a second, and min_fr"):
    found.cut(names(found)["tiny.mp4"])
  large = open_clips(folder, decoder, multiple=64)
  with pytest.raises(Unreadable, match="40x200 pixels, smaller than 64x64"):
    large.cut(names(found)["still.png"])
  required = open_clips(folder, decoder, captions="required")
  with pytest.raises(Unreadable, match="no caption"):
    required.look(names(found)["slow.mp4"])


def test_several_clips_of_a_file_do_not_meet(folder, decoder):
  found = open_clips(folder, decoder, clips_per_file=5, max_frames=5, fps=16.0)
  windows = found.look(names(found)["fast.mp4"])[0]
  assert len(windows) == 5
  begins = [w.begin * 16 for w in windows]
  assert begins[0] > 0
  assert np.diff(begins).min() >= 5
  assert begins[-1] + 5 <= 30
  for window in windows:
    assert window.slack > 0
  ends = [(w.begin + w.slack) * 16 + 5 for w in windows]
  starts = [(w.begin - w.slack) * 16 for w in windows[1:]]
  assert all(e <= s + 1e-6 for e, s in zip(ends, starts, strict=False))


def test_captions_carry_the_motion_score(folder, decoder):
  found = open_clips(folder, decoder)
  (fast,) = found.cut(names(found)["fast.mp4"])
  assert sorted(fast["captions"]) == [
    "a clock Motion score: 4.2.",
    "a grey clock, brighter Motion score: 4.2.",
  ]
  assert fast["about"]["scores"] == {"motion_score": 4.25}
  (plain,) = open_clips(folder, decoder, motion_score=False).cut(
    names(found)["fast.mp4"]
  )
  assert "a clock" in plain["captions"]
  (still,) = found.cut(names(found)["still.png"])
  assert still["captions"] == ("",)


def make_windows(folder, decoder, **changes):
  more = dict(seed=0, augment=False, flip=0.0, threads=1)
  count = lambda caption: len(tokenize.encode(caption))
  found = open_clips(folder, decoder)
  return clips.Windows(found, count=count, **more | changes)


def test_windows_are_samples_and_what_gives_none_is_listed(folder, decoder):
  seen = []
  raw = make_windows(folder, decoder, progress=seen.append)
  assert seen == [1, 2, 3, 4]
  assert len(raw) == 3
  ((key, reason),) = ((d["key"], d["reason"]) for d in raw.dropped)
  assert key == "tiny.mp4"
  assert "3 frames" in reason
  sizes = raw.sizes()
  for i in range(3):
    sample = raw.read(i, 0)
    assert tuple(sizes[i, :3]) == sample["video"].shape[:3]
    longest = max(len(tokenize.encode(c)) for c in sample["captions"])
    assert sizes[i, 3] == longest


def test_augmented_clips_begin_elsewhere_and_are_mirrored(folder, decoder):
  plain = make_windows(folder, decoder)
  moved = make_windows(folder, decoder, augment=True)
  begins = [moved.read(0, visit)["about"]["begin"] for visit in range(12)]
  assert len(set(begins)) > 6
  assert begins[3] == moved.read(0, 3)["about"]["begin"]
  window = plain.windows[0]
  assert all(abs(b - window.begin) <= window.slack + 1e-6 for b in begins)
  mirror = make_windows(folder, decoder, flip=1.0)
  one, two = (raw.read(2, 0)["video"] for raw in (plain, mirror))
  np.testing.assert_array_equal(one, two[:, :, ::-1])


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(min_frames=6), "num_frames=6 is not 4k"),
    (dict(step_frames=3), "num_frames=8 is not 4k"),
    (dict(max_frames=4), "min_frames=5, max_frames=4"),
    (dict(min_frames=1), "min_frames=1, max_frames=9"),
    (dict(captions="some"), "captions='some' is not one of"),
    (dict(pixels=100), "pixels=100 hold no frame of 16x16"),
    (dict(clips_per_file=0), "clips_per_file=0"),
  ],
)
def test_settings_that_give_no_clip_are_refused(folder, decoder, changes, says):
  with pytest.raises(UserError, match=says):
    open_clips(folder, decoder, **changes)
