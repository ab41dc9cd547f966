"""Files as cameras, phones and strangers make them, each a real one."""

import fractions
import io
import pathlib
import socket
import struct
import tempfile
import zlib

import av
import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from goku_jax.data import media
from goku_jax.data.media import Limits, Unreadable


def make_video(T=12, H=48, W=64):
  """Frames that all differ, of blocks that survive compression."""
  shape = (T, -(-H // 16), -(-W // 16), 3)
  blocks = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  return blocks.repeat(16, 1).repeat(16, 2)[:, :H, :W]


def encode(
  video,
  codec="libx264",
  pix_fmt="yuv420p",
  format="mp4",
  *,
  times_ms=None,
  aspect=None,
  **options,
):
  """The bytes of a file at 10 frames a second."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "video")
    _encode(path, video, codec, pix_fmt, format, times_ms, aspect, options)
    return path.read_bytes()


def _encode(path, video, codec, pix_fmt, format, times_ms, aspect, options):
  # The index first, for which FFmpeg opens the file a second time.
  flags = {"movflags": "faststart"} if format == "mp4" else {}
  with av.open(str(path), "w", format=format, options=flags) as container:
    stream = container.add_stream(codec, rate=10)
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt = pix_fmt
    stream.options = {name: str(value) for name, value in options.items()}
    if codec == "libx264":
      stream.options = {"crf": "12", **stream.options}
    if times_ms:
      stream.codec_context.time_base = fractions.Fraction(1, 1000)
    if aspect:
      stream.codec_context.sample_aspect_ratio = aspect
    for i, image in enumerate(video):
      frame = av.VideoFrame.from_ndarray(image)
      if times_ms:
        frame.pts, frame.time_base = times_ms[i], fractions.Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def picture(array, format="png", **options):
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, format, **options)
  return buffer.getvalue()


def which(found, video):
  """For each frame the number of the most alike one of a video."""
  return [
    int(np.abs(video.astype(int) - frame).mean((1, 2, 3)).argmin())
    for frame in found
  ]


def assert_alike(found, expected, by=8.0):
  assert found.shape == expected.shape
  assert np.abs(found.astype(int) - expected).mean() < by


def refuse(file, reason):
  """Neither probed nor read, for the same reason."""
  for ask in (media.probe, lambda file: media.read(file, [0.0], (16, 16))):
    with pytest.raises(Unreadable, match=reason):
      ask(file)


def write(path, data):
  path.write_bytes(data)
  return str(path)


def test_a_video_is_probed_and_read_by_path_and_by_its_bytes(tmp_path):
  video = make_video()
  data = encode(video)
  path = write(tmp_path / "a.mp4", data)
  assert media.probe(path) == media.probe(data) == (12, 48, 64, 10.0, 1.2)
  times = [0.0, 0.3, 0.3, 1.1]
  found = media.read(path, times, (48, 64))
  np.testing.assert_array_equal(found, media.read(data, times, (48, 64)))
  assert_alike(found, video[[0, 3, 3, 11]])


FORMATS = (
  ("libx264", "yuv420p", "mp4"),
  ("libx264", "yuv420p", "matroska"),
  ("libx264", "yuv420p", "mpegts"),
  ("libx265", "yuv420p", "mp4"),
  ("libvpx-vp9", "yuv420p", "webm"),
  ("mpeg4", "yuv420p", "avi"),
  ("gif", "rgb8", "gif"),
)


@pytest.mark.parametrize(("codec", "pix_fmt", "format"), FORMATS)
def test_a_seek_to_any_frame_gives_that_frame(codec, pix_fmt, format):
  video = make_video(23)
  more = {"x265-params": "log-level=none"} if codec == "libx265" else {}
  if codec == "mpeg4":
    more = {"bf": 2}  # written after the frames that they need
  data = encode(video, codec, pix_fmt, format, g=7, **more)
  assert media.probe(data)[:3] == (23, 48, 64)
  at = [i / 10 for i in range(23)]
  assert which(media.read(data, at, (48, 64)), video) == list(range(23))
  for i in range(23):
    assert which(media.read(data, [i / 10], (48, 64)), video) == [i]


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine"])
def test_a_seek_in_a_film_gives_what_decoding_from_the_start_does(
  real_videos, name
):
  path = str(real_videos[name])
  probe = media.probe(path)
  with av.open(path) as container:
    frames = list(container.decode(video=0))
  assert probe.frames == len(frames)
  size = H, W = probe[1:3]
  for i in (1, len(frames) // 2, len(frames) - 1):
    expected = frames[i].reformat(W, H, "rgb24", interpolation="BICUBIC")
    (found,) = media.read(path, [i / probe.fps], size)
    np.testing.assert_array_equal(found, expected.to_ndarray())


def test_frames_go_where_the_caller_wants_them():
  out = np.zeros((1, 48, 64, 3), np.uint8)
  assert media.read(encode(make_video(1)), [0.0], (48, 64), out=out) is out
  assert out.any()


@pytest.mark.parametrize("times", [[], [-0.1], [0.2, 0.1]])
def test_times_that_do_not_rise_are_refused(times):
  with pytest.raises(ValueError, match="do not rise"):
    media.read(encode(make_video(2)), times, (48, 64))


def test_a_time_beyond_the_end_is_refused():
  data = encode(make_video(4))
  assert len(media.read(data, [0.4], (48, 64))) == 1  # the last lasts till then
  with pytest.raises(Unreadable, match=r"no frame at 0\.6 seconds"):
    media.read(data, [0.0, 0.6], (48, 64))


def test_a_video_of_one_frame_is_read():
  video = make_video(1)
  data = encode(video)
  assert media.probe(data) == (1, 48, 64, 10.0, 0.1)
  assert_alike(media.read(data, [0.0, 0.05], (48, 64)), video.repeat(2, 0))


def test_of_uneven_frames_the_nearest_is_given():
  video = make_video(5)
  data = encode(video, times_ms=[0, 100, 150, 400, 1000])
  frames, _, _, fps, seconds = media.probe(data)
  assert (frames, fps) == (5, 5 / seconds)
  assert 1.0 < seconds <= 1.6
  times = [0.04, 0.06, 0.13, 0.27, 0.28, 0.69, 0.71, 1.0]
  expected = [0, 1, 2, 2, 3, 3, 4, 4]
  assert which(media.read(data, times, (48, 64)), video) == expected
  for time, i in zip(times, expected, strict=True):
    assert which(media.read(data, [time], (48, 64)), video) == [i]


def test_of_two_equally_near_frames_the_earlier_is_given():
  video = make_video(4)
  found = media.read(encode(video), [0.05, 0.15, 0.25], (48, 64))
  assert which(found, video) == [0, 1, 2]


def test_pixels_that_are_not_square_count_by_what_they_show():
  data = encode(make_video(1), aspect=fractions.Fraction(20, 1))
  with pytest.raises(Unreadable, match="1280x48 pixels"):
    media.probe(data, Limits(pixels=48 * 64))


INTERLACED = (
  ("libx264", "mp4", {"x264-params": "tff=1"}),
  ("libx264", "mpegts", {"x264-params": "bff=1"}),
  ("mpeg2video", "mpegts", {"flags": "+ildct+ilme", "b": 4_000_000}),
)


@pytest.mark.parametrize(("codec", "format", "more"), INTERLACED)
def test_interlaced_frames_are_read_whole_and_stay_woven(codec, format, more):
  fields = make_video(24)[..., :1].repeat(3, 3)  # grey: rows share no colour
  video = fields[::2].copy()
  video[:, 1::2] = fields[1::2, 1::2]
  data = encode(video, codec, format=format, **more)
  with av.open(io.BytesIO(data)) as container:
    assert next(container.decode(video=0)).interlaced_frame
  assert media.probe(data) == (12, 48, 64, 10.0, 1.2)
  at = [i / 10 for i in range(12)]
  assert_alike(media.read(data, at, (48, 64)), video)
  for i in (5, 11):
    assert_alike(media.read(data, [i / 10], (48, 64)), video[i : i + 1])


def test_a_video_that_lacks_its_index_is_refused(tmp_path):
  data = encode(make_video())
  index = data.index(b"moov") - 4
  size = int.from_bytes(data[index : index + 4])
  without = data[:index] + data[index + size :]
  reason = r"cut short or damaged: no index \(moov\) inside"
  refuse(write(tmp_path / "a.mp4", without), reason)
  refuse(data[: index + size // 2], "cut short or damaged")


@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_video_whose_frames_are_cut_is_refused(tmp_path, share):
  video = make_video(40, 96, 128)
  data = encode(video)
  frames = data.index(b"mdat")
  path = write(tmp_path / "a.mp4", data[: int(len(data) * share)])
  assert frames < len(data) * share
  with pytest.raises(Unreadable, match="cut short"):
    media.probe(path)
  with pytest.raises(Unreadable, match=r"cut short or damaged after|no frame"):
    media.read(path, [0.0, 3.9], (96, 128))
  assert which(media.read(path, [0.1], (96, 128)), video) == [1]


@pytest.mark.parametrize("format", ["matroska", "avi", "mpegts"])
def test_other_formats_that_are_cut_say_so_at_the_latest_when_read(format):
  codec = "mpeg4" if format == "avi" else "libx264"
  data = encode(make_video(40), codec, format=format)
  with pytest.raises(Unreadable, match=r"cut short|no frame"):
    media.read(data[: len(data) * 2 // 3], [0.0, 3.9], (48, 64))


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_noise_among_the_frames_crashes_nothing(format):
  data = bytearray(encode(make_video(20), format=format))
  half = len(data) // 2
  noise = np.random.default_rng(0).integers(0, 256, len(data) - half)
  data[half:] = noise.astype(np.uint8).tobytes()
  with pytest.raises(Unreadable):
    media.read(bytes(data), [0.0, 1.9], (48, 64))


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (b"", "empty file"),
    (b"once upon a time\n" * 40, "not a picture or video"),
    (b"\0" * 4096, "not a picture or video"),
    (b"\x89PNG\r\n\x1a\n", "truncated|Truncated|unpack"),
    (b"\xff\xd8\xff\xe0", "truncated|Truncated|unpack"),
    (b"GIF89a", "cut short or damaged"),
  ],
)
def test_what_is_no_video_says_so_whatever_its_name(tmp_path, data, reason):
  refuse(write(tmp_path / "a.mp4", data), reason)
  refuse(data, reason)


def test_what_cannot_be_opened_says_why(tmp_path):
  refuse(str(tmp_path / "none.mp4"), "No such file")
  refuse(str(tmp_path), "Is a directory")


def test_a_file_with_sound_only_is_refused():
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("aac", rate=44100, layout="mono")
    silence = np.zeros((1, 44100), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
    frame.sample_rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  refuse(buffer.getvalue(), "no video stream")


def test_a_huge_picture_is_refused_by_its_header():
  def chunk(name, data):
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check

  header = struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
  data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
  refuse(b"\x89PNG\r\n\x1a\n" + data, "50000x50000 pixels, more than")


def test_more_frames_or_pixels_than_the_limits_are_refused():
  data = encode(make_video(4))
  array = io.BytesIO()
  np.save(array, make_video(4))
  for file in (data, array.getvalue()):
    assert media.probe(file, Limits(48 * 64, 4)).frames == 4
    with pytest.raises(Unreadable, match="more than 3 frames"):
      media.probe(file, Limits(frames=3))
    with pytest.raises(Unreadable, match="64x48 pixels, more than 3071"):
      media.probe(file, Limits(pixels=48 * 64 - 1))
    with pytest.raises(Unreadable, match="64x48 pixels, more than 3071"):
      media.read(file, [0.0], (16, 16), Limits(pixels=48 * 64 - 1))


def test_a_photo_is_turned_as_its_camera_says():
  image = make_video(1)[0]
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
  data = picture(image, "jpeg", exif=exif, quality=95, subsampling=0)
  assert media.probe(data) == (1, 64, 48, 0.0, 0.0)
  found = media.read(data, [0.0], (64, 48))
  assert_alike(found, np.rot90(image, -1)[None])


@pytest.mark.parametrize("size", [(48, 64), (24, 32)])
def test_a_photo_in_the_colours_of_print_becomes_red_green_and_blue(size):
  image = Image.fromarray(make_video(1)[0])
  buffer = io.BytesIO()
  image.convert("CMYK").save(buffer, "jpeg", quality=95, subsampling=0)
  data = buffer.getvalue()
  assert JpegImageFile(io.BytesIO(data)).mode == "CMYK"
  assert media.probe(data) == (1, 48, 64, 0.0, 0.0)
  expected = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
  assert_alike(media.read(data, [0.0], size), expected[None])


def test_what_is_transparent_becomes_white():
  image = np.zeros((16, 16, 4), np.uint8)
  image[:8] = [10, 20, 30, 255]
  (found,) = media.read(picture(image), [0.0], (16, 16))
  assert (found[:8] == [10, 20, 30]).all()
  assert (found[8:] == 255).all()
  grey = Image.fromarray(np.full((4, 4), 7, np.uint8))
  grey.info["transparency"] = 7
  buffer = io.BytesIO()
  grey.save(buffer, "png")
  assert (media.read(buffer.getvalue(), [0.0], (4, 4)) == 255).all()


@pytest.mark.parametrize("format", ["webp", "png"])
def test_the_first_frame_of_an_animated_picture_counts(format):
  images = [Image.fromarray(v) for v in make_video(3)]
  buffer = io.BytesIO()
  more = {"save_all": True, "append_images": images[1:], "lossless": True}
  images[0].save(buffer, format, **more)
  data = buffer.getvalue()
  assert media.probe(data) == (1, 48, 64, 0.0, 0.0)
  np.testing.assert_array_equal(
    media.read(data, [0.0], (48, 64)), make_video(3)[:1]
  )


def test_grey_of_sixteen_bits_keeps_its_upper_eight():
  grey = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
  (found,) = media.read(picture(grey), [0.0], (8, 8))
  np.testing.assert_array_equal(found, (grey >> 8)[..., None].repeat(3, 2))


def test_a_picture_that_is_cut_is_refused_when_read():
  data = picture(make_video(1, 96, 96)[0], "jpeg")
  with pytest.raises(Unreadable, match=r"[Tt]runcated"):
    media.read(data[: len(data) // 2], [0.0], (96, 96))


def test_arrays_are_frames_at_eight_a_second(tmp_path):
  video = make_video(4)
  path = str(tmp_path / "a.npy")
  np.save(path, video)
  assert media.probe(path) == (4, 48, 64, 8.0, 0.5)
  found = media.read(path, [0.0, 0.375, 0.5], (48, 64))
  np.testing.assert_array_equal(found, video[[0, 3, 3]])
  np.save(path, video[0])
  assert media.probe(path)[:3] == (1, 48, 64)


@pytest.mark.parametrize(
  "array",
  [
    np.zeros((4, 8, 8, 3)),
    np.zeros((4, 8, 8, 4), np.uint8),
    np.zeros((8, 8), np.uint8),
    np.zeros((0, 8, 8, 3), np.uint8),
    np.array([{"a": 1}]),
  ],
)
def test_arrays_that_are_no_video_are_refused(array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  refuse(buffer.getvalue(), "not a video|no frames|allow_pickle")


PLAYLIST = """#EXTM3U
#EXT-X-TARGETDURATION:2
#EXTINF:1.2,
{}
#EXT-X-ENDLIST
"""


@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4"])
def test_a_playlist_opens_no_address(tmp_path, name):
  with socket.create_server(("127.0.0.1", 0)) as server:
    server.setblocking(False)
    address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
    text = PLAYLIST.format(address)
    refuse(write(tmp_path / name, text.encode()), "not a picture or video")
    refuse(text.encode(), "not a picture or video")
    with pytest.raises(BlockingIOError):
      server.accept()


def test_a_playlist_opens_no_other_file(tmp_path):
  other = encode(make_video(), format="mpegts")
  write(tmp_path / "secret.ts", other)
  path = write(tmp_path / "a.m3u8", PLAYLIST.format("secret.ts").encode())
  with av.open(path) as container:  # as FFmpeg does where nobody forbids it
    assert container.streams.video[0].width == 64
  refuse(path, "not a picture or video")


def box(name, *parts):
  data = b"".join(parts)
  return struct.pack(">I4s", len(data) + 8, name) + data


def alias(path):
  """Where QuickTime says that the frames of a track lie: in another file."""
  path = str(path).encode()
  path += bytes(len(path) % 2)
  names = struct.pack(">2h", 2, len(path)) + path + struct.pack(">2h", -1, 0)
  # Flags, volume, dates and name are 134 bytes; one level up, one down.
  return box(b"alis", bytes(134), struct.pack(">2h", 1, 1), bytes(16), names)


def url(path):
  return box(b"url ", bytes(4), f"file://{path}\0".encode())


def refer(data, entry):
  """A QuickTime film whose track has this reference instead of itself."""
  data = bytearray(data)
  at = data.index(b"url ", data.index(b"dref")) - 4
  (before,) = struct.unpack_from(">I", data, at)
  for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
    place = data.rindex(name, 0, at) - 4
    (size,) = struct.unpack_from(">I", data, place)
    struct.pack_into(">I", data, place, size + len(entry) - before)
  data[at : at + before] = entry
  return bytes(data)


def test_a_film_that_refers_to_another_file_does_not_open_it(tmp_path):
  film = encode(make_video(4), format="mov")
  other = write(tmp_path / "secret.mov", film)
  path = write(tmp_path / "a.mov", refer(film, alias(other)))
  # FFmpeg opens it where it is asked to.
  options = {"enable_drefs": "1", "use_absolute_path": "1"}
  with av.open(path, options=options) as container:
    assert len(list(container.decode(video=0))) == 4
  refuse(path, "no frames")
  refuse(pathlib.Path(path).read_bytes(), "no frames")


def test_a_film_that_refers_to_an_address_is_read_from_itself(tmp_path):
  video = make_video(4)
  film = encode(video, format="mov")
  other = write(tmp_path / "secret.mov", film)
  data = refer(film, url(other))
  assert which(media.read(data, [0.0, 0.3], (48, 64)), video) == [0, 3]
  start, end = film.index(b"mdat") + 4, film.index(b"moov") - 4
  emptied = data[:start] + bytes(end - start) + data[end:]
  refuse(write(tmp_path / "a.mov", emptied), "damaged")


@pytest.mark.parametrize("name", ["-i.mp4", "concat:a|b.mp4", "pipe:0"])
def test_a_name_is_nothing_but_a_name(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / name, encode(make_video(2)))
  assert media.probe(name).frames == 2


def claim_size(data, side):
  """An AVI file whose headers give its frames another height and width."""
  data = bytearray(data)
  for name, place in ((b"avih", 40), (b"strf", 12)):
    struct.pack_into("<2I", data, data.index(name) + place, side, side)
  return bytes(data)


def test_a_film_is_refused_by_the_size_that_it_claims():
  film = encode(make_video(2), "rawvideo", "bgr24", "avi")
  media.probe(film)
  refuse(claim_size(film, 9_000), "9000x9000 pixels, more than")
  refuse(claim_size(film, 60_000), "damaged")  # FFmpeg's own limit


def test_a_film_that_hides_its_size_is_refused_by_its_first_frame():
  film = claim_size(encode(make_video(2), "mjpeg", "yuvj420p", "avi"), 32)
  limits = Limits(pixels=48 * 64 - 1)
  for ask in (media.probe, lambda x, y: media.read(x, [0.0], (8, 8), y)):
    with pytest.raises(Unreadable, match="64x48 pixels, more than"):
      ask(film, limits)


def test_a_film_of_very_many_streams_is_refused():
  def film(streams):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
      for _ in range(streams):
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuvj420p"
      for stream in container.streams.video:
        frame = av.VideoFrame.from_ndarray(make_video(1, 16, 16)[0])
        container.mux(stream.encode(frame))
    return buffer.getvalue()

  assert media.probe(film(64)).frames == 1
  refuse(film(65), "more than 64 streams")
