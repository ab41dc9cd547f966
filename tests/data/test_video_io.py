"""Frames survive the trip to a file and back; mistakes end in one line."""

import concurrent.futures
import os
import pathlib
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from goku_jax.data import video_io
from goku_jax.typing import UserError


def moving_square(num_frames=9, height=32, width=32, grey=True):
  """A bright square that steps right, one pixel a frame."""
  video = np.full((num_frames, height, width, 3), 16, np.uint8)
  for t in range(num_frames):
    video[t, 8:20, t : t + 12] = 235 if grey else (235, 60, 20)
  return video


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npz"])
def test_a_video_survives_the_trip(tmp_path, suffix):
  video, path = moving_square(), tmp_path / f"x{suffix}"
  metadata = {"prompt": "the digit fünf", "seed": 3, "long": "x" * 600}
  video_io.write_video(path, video, fps=10, metadata=metadata)
  read, fps = video_io.read_video(path)
  assert read.shape == video.shape
  assert read.dtype == np.uint8
  assert fps == pytest.approx(10)
  error = np.abs(read.astype(int) - video)
  assert error.max() <= (12 if suffix == ".mp4" else 0)
  assert error.mean() <= 1
  assert video_io.read_metadata(path) == metadata


def test_an_image_survives_the_trip(tmp_path):
  image, path = moving_square(1, grey=False), tmp_path / "x.png"
  video_io.write_video(path, image, metadata={"prompt": "a"})
  read, _ = video_io.read_video(path)
  np.testing.assert_array_equal(read, image)
  assert video_io.read_metadata(path) == {"prompt": "a"}


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npz", ".png"])
def test_same_frames_same_bytes(tmp_path, suffix):
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (1, 24, 40, 3), np.uint8)
  if suffix != ".png":
    video = np.concatenate([video] * 5)
  for name in ("a", "b"):
    video_io.write_video(tmp_path / (name + suffix), video, metadata={"s": 1})
  a, b = sorted(tmp_path.iterdir())
  assert a.read_bytes() == b.read_bytes()


def test_colours_beyond_256_are_near_in_a_gif(tmp_path):
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (5, 20, 20, 3), np.uint8)
  video_io.write_video(tmp_path / "x.gif", small)
  read, _ = video_io.read_video(tmp_path / "x.gif")
  assert np.abs(read.astype(int) - small).mean() < 20


def test_equal_frames_are_not_merged_in_a_gif(tmp_path):
  video = np.repeat(moving_square(1), 9, axis=0)
  video_io.write_video(tmp_path / "x.gif", video)
  assert video_io.read_video(tmp_path / "x.gif")[0].shape == video.shape


def test_odd_sizes_are_padded_by_their_edge(tmp_path):
  video = moving_square(5, 31, 33)
  video_io.write_video(tmp_path / "x.mp4", video)
  read, _ = video_io.read_video(tmp_path / "x.mp4")
  assert read.shape == (5, 32, 34, 3)
  assert np.abs(read[:, -1].astype(int) - read[:, -2]).max() <= 4


def test_upscale_makes_squares_of_pixels(tmp_path):
  video = moving_square(5)
  video_io.write_video(tmp_path / "x.gif", video, upscale=4)
  read, _ = video_io.read_video(tmp_path / "x.gif")
  assert read.shape == (5, 128, 128, 3)
  np.testing.assert_array_equal(read[:, ::4, ::4], video)


def test_a_file_without_metadata_has_none(tmp_path):
  Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
  assert video_io.read_metadata(tmp_path / "x.png") == {}


def test_mistakes_are_one_clear_line(tmp_path):
  video = moving_square(5)
  (tmp_path / "file").write_text("not a folder")
  for name, expected in {
    "x.avi": ".avi; use one of .mp4 .gif .png .npz",
    "x": "without a suffix",
    "x.png": "holds one frame, but the video has 5",
    "file/x.mp4": "cannot write there",
  }.items():
    with pytest.raises(UserError, match=expected) as error:
      video_io.write_video(tmp_path / name, video)
    assert "\n" not in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npz", ".png"])
@pytest.mark.parametrize("content", [None, b"", b"not a video at all" * 9])
def test_an_unreadable_file_is_one_clear_line(tmp_path, suffix, content):
  path = tmp_path / f"x{suffix}"
  if content is not None:
    path.write_bytes(content)
  for read in (video_io.read_video, video_io.read_metadata):
    with pytest.raises(UserError, match="cannot read it"):
      read(path)


def test_a_contact_sheet_shows_motion_and_captions(tmp_path):
  video = moving_square(17)
  image = moving_square(1)[0]
  rows = [[video, image], [video]]
  captions = [["the digit one moves right", "word " * 400], ["\ud800"]]
  video_io.contact_sheet(rows, captions, tmp_path / "x.png")
  with Image.open(tmp_path / "x.png") as picture:
    sheet = np.asarray(picture)
  assert sheet.shape[0] > 2 * 64
  # The strip's first and last frame differ where the square has left.
  strip = sheet[12 + 34 : 12 + 34 + 64, 12 : 12 + 5 * 66 - 2]
  np.testing.assert_array_equal(
    strip[:, :64], video[0].repeat(2, 0).repeat(2, 1)
  )
  np.testing.assert_array_equal(
    strip[:, -64:], video[-1].repeat(2, 0).repeat(2, 1)
  )
  assert (sheet[12 : 12 + 34] < 128).any()  # ink of the caption


def test_a_thin_picture_is_shown_too(tmp_path):
  thin = np.zeros((1, 600, 1, 3), np.uint8)
  video_io.contact_sheet([[thin]], [["thin"]], tmp_path / "x.png")
  assert video_io.read_video(tmp_path / "x.png")[0].shape[2] == 12 + 200 + 12


def test_frames_that_last_unevenly_are_read_as_they_are_shown(tmp_path):
  """Four of a tenth of a second, one of a whole: 1.4 seconds in five parts."""
  frames = [Image.new("RGB", (16, 16), (50 * i, 0, 0)) for i in range(5)]
  frames[0].save(
    tmp_path / "x.gif",
    save_all=True,
    append_images=frames[1:],
    duration=[100] * 4 + [1000],
  )
  assert video_io.probe(tmp_path / "x.gif")[0] == 5
  read = lambda *indices: [
    round(frame.mean() * 3 / 50)
    for frame in video_io.read_frames(tmp_path / "x.gif", indices)
  ]
  assert read(0, 1, 2, 3, 4)[-3:] == [4, 4, 4]
  for index in range(5):
    assert read(index) == read(0, 1, 2, 3, 4)[index : index + 1]
  with pytest.raises(UserError, match="cut short"):
    read(0, 9)


def test_a_contact_video_plays_all_its_videos_at_once(tmp_path):
  short, long = moving_square(5), moving_square(17)
  captions = [["raw: one", "ema: one"], ["raw: two", "ema: two"]]
  video_io.contact_video(
    [[long, short], [short, long]], captions, tmp_path / "x.mp4", fps=6
  )
  played, fps = video_io.read_video(tmp_path / "x.mp4")
  assert (len(played), fps) == (17, 6)
  for t in (0, 4, 16):
    for (row, column), video in np.ndenumerate([[0, 1], [1, 0]]):
      video = [long, short][video]
      y, x = 12 + 34 + row * (34 + 128 + 12), 12 + column * (200 + 12)
      want = video[min(t, len(video) - 1)].repeat(4, 0).repeat(4, 1)
      found = played[t, y : y + 128, x : x + 128]
      assert np.abs(found - want.astype(float)).mean() < 8


def test_curves_accept_what_a_run_leaves(tmp_path):
  steps = np.arange(200)
  video_io.curves(
    tmp_path / "x.png",
    {
      "loss": (steps, np.exp(-steps / 50)),
      "with a hole": (steps[:3], [1.0, np.nan, 2.0]),
      "psnr": ([], []),
    },
  )
  with Image.open(tmp_path / "x.png") as picture:
    assert picture.width > 400


def test_a_film_is_read_clip_by_clip(real_videos):
  path = real_videos["carphone_pristine"]
  whole, fps = video_io.read_video(path)
  clips = list(video_io.read_clips(path, 17))
  assert len(clips) == len(whole) // 17
  np.testing.assert_array_equal(np.concatenate(clips), whole[: 17 * len(clips)])
  (slow, *_) = video_io.read_clips(path, 5, fps=fps / 3)
  np.testing.assert_array_equal(slow, whole[0:15:3])


def test_the_first_clip_of_a_film_needs_no_more_of_it(real_videos):
  tracemalloc.start()
  clip = next(video_io.read_clips(real_videos["bigbuckbunny"], 2))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4 * clip.nbytes


@pytest.mark.parametrize(
  ("fps", "kept"),
  [(0, [0, 1, 2, 3, 4, 5]), (60, [0, 1, 2, 3, 4, 5]), (10, [0, 3]),
   (20, [0, 2, 3, 5]), (1, [0])],
)  # fmt: skip
def test_frames_are_left_out_and_never_repeated(tmp_path, fps, kept):
  video = moving_square(6)
  video_io.write_video(tmp_path / "x.npz", video, fps=30)
  video_io.write_video(tmp_path / "x.gif", video, fps=25)
  (clip,) = video_io.read_clips(tmp_path / "x.npz", 9, fps)
  np.testing.assert_array_equal(clip, video[kept])
  (clip,) = video_io.read_clips(tmp_path / "x.gif", 9, fps * 25 / 30)
  np.testing.assert_array_equal(clip, video[kept])


def test_a_file_shorter_than_a_clip_is_one_shorter_clip(tmp_path):
  video_io.write_video(tmp_path / "x.npz", moving_square(7))
  assert [len(c) for c in video_io.read_clips(tmp_path / "x.npz", 3)] == [3, 3]
  assert [len(c) for c in video_io.read_clips(tmp_path / "x.npz", 9)] == [7]


def test_a_folder_is_listed_by_name_and_by_what_can_be_read(tmp_path):
  for name in ("b/x.png", "a.NPZ", "b/notes.txt", ".a.mp4.1.partial", "c.jpg"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  names = [str(p.relative_to(tmp_path)) for p in video_io.list_videos(tmp_path)]
  assert names == ["a.NPZ", "b/x.png", "c.jpg"]
  with pytest.raises(UserError, match="holds no video or picture"):
    video_io.list_videos(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["short", "flipped", "absent", "scalar"])
def test_a_damaged_array_file_is_named(tmp_path, damage):
  path = tmp_path / "x.npz"
  video_io.write_video(path, moving_square())
  data = bytearray(path.read_bytes())
  if damage == "short":
    path.write_bytes(data[: len(data) // 2])
  elif damage == "flipped":
    data[100] ^= 255
    path.write_bytes(data)
  elif damage == "absent":
    np.savez(path, frames=moving_square(), fps=8.0)
  else:
    np.savez(path, video=3, fps=8.0)
  with pytest.raises(UserError, match=r"x\.npz: cannot read it"):
    list(video_io.read_clips(path, 5))


def readers(path):
  """All that opens a film or picture of strangers."""
  yield lambda: video_io.read_video(path)
  yield lambda: list(video_io.read_clips(path, 2))
  yield lambda: video_io.probe(path)
  yield lambda: video_io.read_frames(path, [0, 1])
  yield lambda: video_io.read_metadata(path)


def refuse(path, reason="cannot read it"):
  for read in readers(path):
    with pytest.raises(UserError, match=reason) as error:
      read()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".gif", ".png", ".jpg"])
@pytest.mark.parametrize(
  "text",
  [
    "ffconcat version 1.0\nfile secret.mp4\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nsecret.mp4\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
  ],
)
def test_a_list_under_the_name_of_a_film_opens_nothing(tmp_path, suffix, text):
  video_io.write_video(tmp_path / "secret.mp4", moving_square(5))
  (tmp_path / f"a{suffix}").write_text(text)
  refuse(tmp_path / f"a{suffix}")


def test_a_name_opens_nothing_but_its_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  video_io.write_video("secret.mp4", moving_square(5))
  name = pathlib.Path("concat:secret.mp4|secret.mp4")
  refuse(name)
  video_io.write_video(name.with_name("pipe:0.mp4"), moving_square(2))
  assert len(video_io.read_video("pipe:0.mp4")[0]) == 2


def test_a_bomb_is_refused_by_its_header(tmp_path):
  chunk = lambda name, data: (
    struct.pack(">I", len(data))
    + name
    + data
    + struct.pack(">I", zlib.crc32(name + data))
  )
  header = struct.pack(">2I5B", 30_000, 30_000, 8, 2, 0, 0, 0)
  data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
  (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
  refuse(tmp_path / "a.png")


def test_arrays_with_objects_are_refused(tmp_path):
  harm = np.array([{"run": "me"}], dtype=object)
  np.savez(tmp_path / "a.npz", video=harm, fps=8.0, comment=harm)
  refuse(tmp_path / "a.npz")


def test_a_film_that_kills_its_reader_ends_in_one_line(tmp_path):
  path = tmp_path / "endless.mp4"
  os.mkfifo(path)
  video_io.write_video(tmp_path / "good.mp4", moving_square(5))
  video_io.probe(tmp_path / "good.mp4")
  (child, *_) = video_io._decoder(os.getpid())._idle.queue[::-1]
  with concurrent.futures.ThreadPoolExecutor(1) as threads:
    asked = threads.submit(video_io.read_video, path)
    with open(path, "wb"):  # waits until the child has opened it
      child._process.kill()
      with pytest.raises(UserError, match=r"endless.*died \(signal 9\)"):
        asked.result()
  assert video_io.probe(tmp_path / "good.mp4")[0] == 5


def test_films_read_in_turns_are_each_read_in_order(tmp_path):
  """A child holds one film open: the other is taken up where it was."""
  videos = moving_square(40), moving_square(40)[::-1].copy()
  for name, video in zip("ab", videos, strict=True):
    video_io.write_video(tmp_path / f"{name}.gif", video)
  clips = zip(
    *(video_io.read_clips(tmp_path / f"{name}.gif", 3) for name in "ab"),
    strict=True,
  )
  for i, pair in enumerate(clips):
    for found, video in zip(pair, videos, strict=True):
      np.testing.assert_array_equal(found, video[3 * i : 3 * i + 3])
  assert i == 12
