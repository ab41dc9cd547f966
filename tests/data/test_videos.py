"""Clips of real films: the frames asked for, held out apart, or one line."""

import numpy as np
import pytest

from goku_jax.data import video_io, videos
from goku_jax.typing import UserError

SIZES = dict(num_frames=5, fps=(8.0, 16.0), crop=32, held_out=0.0)


@pytest.fixture(scope="module")
def folder(real_videos):
  return real_videos["bikes"].parent


def write_npz(path, video, fps=8.0):
  np.savez(path, video=video, fps=fps)


def noise(frames=9, side=32, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (frames, side, side, 3), np.uint8)


@pytest.mark.parametrize("first", [0, 1, 37, 119])
def test_frames_are_those_of_the_whole_film(real_videos, first):
  path = real_videos["carphone_pristine"]
  whole, _ = video_io.read_video(path)
  indices = range(first, len(whole), 7)
  np.testing.assert_allclose(
    video_io.read_frames(path, indices).astype(int),
    whole[indices],
    atol=8,  # another filter for the colours, which have half the size
  )
  assert video_io.probe(path) == (*whole.shape[:3], pytest.approx(29.97, 0.01))


@pytest.mark.slow
def test_a_sample_is_its_index_and_a_cut_of_its_film(folder):
  source = videos.Videos(folder, **SIZES)
  again = videos.Videos(folder, **SIZES)
  other = videos.Videos(folder, seed=1, **SIZES)
  for i in (5, 4, 7):
    sample = source[i]
    assert sample["video"].dtype == np.uint8
    assert sample["video"].shape == (1 if i % 2 == 0 else 5, 32, 32, 3)
    np.testing.assert_array_equal(sample["video"], again[i]["video"])
    assert sample["first"] != other[i]["first"]
  sample = source[5]
  whole, _ = video_io.read_video(sample["path"])
  clip = whole[sample["first"] :: sample["stride"]][:5].astype(int)
  near = [
    np.abs(clip[:, y : y + 32, x : x + 32] - sample["video"]).mean()
    for y in range(clip.shape[1] - 31)
    for x in range(clip.shape[2] - 31)
  ]
  assert min(near) < 2


def test_sizes_say_what_samples_are(folder):
  source = videos.Videos(folder, num_samples=6, **SIZES)
  for size, i in zip(source.sizes(), range(6), strict=True):
    assert tuple(size[:3]) == source[i]["video"].shape[:3]


def test_strides_come_near_the_rates_and_never_leave_the_film(tmp_path):
  write_npz(tmp_path / "a.npz", noise(9), fps=24.0)
  write_npz(tmp_path / "b.npz", noise(30), fps=8.0)
  write_npz(tmp_path / "c.npz", noise(3), fps=8.0)
  source = videos.Videos(tmp_path, **SIZES)
  seen = set()
  for i in range(1, 99, 2):
    sample = source[i]
    seen.add((sample["path"][-5], sample["stride"]))
    assert len(sample["video"]) == 5
  assert seen == {("a", 2), ("b", 1)}  # 3 does not fit, c is too short
  stills = {source[i]["path"][-5] for i in range(0, 200, 2)}
  assert stills == {"a", "b", "c"}


def test_pictures_and_films_are_scaled_to_a_resolution(tmp_path):
  video_io.write_video(tmp_path / "a.png", noise(1, 100)[:, :50])
  video_io.write_video(tmp_path / "b.mp4", noise(9, 96)[:, :48])
  source = videos.Videos(tmp_path, resolution=32, **SIZES)
  assert [shot.size for shot in source.shots] == [(32, 64), (32, 64)]
  assert source[0]["video"].shape == (1, 32, 32, 3)
  assert source[1]["path"].endswith("b.mp4")


def test_a_folder_of_pictures_has_no_clips(tmp_path):
  video_io.write_video(tmp_path / "a.png", noise(1, 100))
  source = videos.Videos(tmp_path, **SIZES)
  assert set(source.sizes()[:, 0]) == {1}
  assert source[1]["video"].shape == (1, 32, 32, 3)


def test_a_shot_is_on_one_side(tmp_path):
  for i in range(20):
    write_npz(tmp_path / f"{i}.npz", noise(9))
  sizes = SIZES | dict(held_out=0.4)
  of = lambda split: {
    shot.path.name for shot in videos.Videos(tmp_path, split, **sizes).shots
  }
  train, held_out = of("train"), of("held_out")
  assert len(train) + len(held_out) == 20
  assert not train & held_out
  assert 3 <= len(held_out) <= 13
  (tmp_path / "5.npz").unlink()  # the others stay where they are
  assert of("held_out") == held_out - {"5.npz"}


def test_a_long_film_is_held_out_by_segments(tmp_path):
  write_npz(tmp_path / "a.npz", np.repeat(np.arange(200, dtype=np.uint8), 3072)
            .reshape(200, 32, 32, 3))  # fmt: skip
  more = SIZES | dict(segment_frames=10, held_out=0.3, fps=(8.0,))
  frames = {}
  for split in videos.SPLITS:
    source = videos.Videos(tmp_path, split, **more)
    clips = [source[i]["video"][:, 0, 0, 0] for i in range(1, 199, 2)]
    assert all(len(set(clip // 10)) == 1 for clip in clips)
    frames[split] = set(np.concatenate(clips).tolist())
  assert not frames["train"] & frames["held_out"]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(split="test"), "split='test' is not one of train, held_out"),
    (dict(crop=64), r"a.npz: frames of 32x32 have no crop of 64: set"),
    (dict(crop=0), "crop=0: set 1 or more"),
    (dict(fps=(0.0,)), "fps=.*: set rates above 0"),
    (dict(held_out=1.0), "held_out=1.0 is not from 0 to below 1"),
    (dict(split="held_out"), "held_out=0.0 leaves split=held_out none of 1"),
  ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, changes, says):
  write_npz(tmp_path / "a.npz", noise())
  with pytest.raises(UserError, match=says) as error:
    videos.Videos(tmp_path, **SIZES | changes)
  assert "\n" not in str(error.value)


def test_a_folder_without_videos_is_named(tmp_path):
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(UserError, match=f"{tmp_path} holds no video or picture"):
    videos.Videos(tmp_path, **SIZES)


@pytest.mark.parametrize(
  ("video", "says"),
  [
    (noise().astype(np.uint16), "uint8 or float in .-1, 1., not uint16"),
    (np.full((9, 32, 32, 3), np.nan, np.float32), "pixels that are NaN"),
    (np.full((9, 32, 32, 3), 7.0, np.float32), "from 7 to 7; float is in"),
    (noise()[..., 0], r"a video is \[T, H, W, 3\], not \[9, 32, 32\]"),
  ],
)
def test_pixels_that_are_none_name_their_file(tmp_path, video, says):
  write_npz(tmp_path / "bad.npz", video)
  with pytest.raises(UserError, match=rf"bad\.npz: .*{says}"):
    videos.Videos(tmp_path, **SIZES)


def test_a_broken_file_is_named(tmp_path, real_videos):
  data = real_videos["bikes"].read_bytes()
  (tmp_path / "bad.mp4").write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match=r"bad\.mp4: cannot read it"):
    videos.Videos(tmp_path, **SIZES)
  (tmp_path / "bad.mp4").write_bytes(b"")
  with pytest.raises(UserError, match=r"bad\.mp4: cannot read it"):
    videos.Videos(tmp_path, **SIZES)
