"""Frames turned, squared, scaled and cut, each out of a real file."""

import fractions
import struct

import numpy as np
import pytest
from PIL import Image

from goku_jax.data import media
from tests.data.test_media import assert_alike, encode, make_video

# Rows of (a, b, c, d) in the header of a track: ISO/IEC 14496-12, 6.2.2.
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def test_frames_cover_a_size_and_are_cut_to_its_middle():
  video = make_video(1, 64, 192)
  found = media.read(encode(video), [0.0], (32, 32))
  middle = video[:, :, 64:128].reshape(1, 32, 2, 32, 2, 3).mean((2, 4))
  assert_alike(found, middle, by=12.0)


@pytest.mark.parametrize("degrees", TURNS)
def test_a_phone_video_is_turned_as_its_header_says(degrees):
  video = make_video(3)
  data = bytearray(encode(video))
  at = data.index(b"tkhd") + 44
  a, b, c, d = (number << 16 for number in TURNS[degrees])
  data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  shown = np.rot90(video, -degrees // 90, axes=(1, 2))
  H, W = shown.shape[1:3]
  assert media.probe(bytes(data))[:3] == (3, H, W)
  assert_alike(media.read(bytes(data), [0.0, 0.1, 0.2], (H, W)), shown)
  cut = shown[:, 8 : H - 8, 8 : W - 8]  # one whose sides do not fit
  found = media.read(bytes(data), [0.0, 0.1, 0.2], (H, W - 16))
  assert_alike(found[:, 8 : H - 8], cut)


@pytest.mark.parametrize(
  ("codec", "pix_fmt", "format"),
  [
    ("libx264", "yuv444p10le", "mp4"),
    ("ffv1", "yuv420p10le", "matroska"),
    ("libvpx-vp9", "yuv420p", "webm"),
  ],
)
def test_ten_bits_and_odd_sides_are_read(codec, pix_fmt, format):
  video = make_video(3, 51, 37)
  data = encode(video, codec, pix_fmt, format)
  assert media.probe(data)[:3] == (3, 51, 37)
  found = media.read(data, [0.0, 0.1, 0.2], (51, 37))
  assert_alike(found, video, by=12.0)


def test_pixels_that_are_not_square_become_so():
  video = make_video(2)
  data = encode(video, aspect=fractions.Fraction(3, 2))
  assert media.probe(data)[:3] == (2, 48, 96)
  wide = [np.asarray(Image.fromarray(v).resize((96, 48))) for v in video]
  found = media.read(data, [0.0, 0.1], (48, 96))
  assert_alike(found, np.stack(wide))
