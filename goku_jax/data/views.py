"""Shows the frames of a video as a player does, at any size.

Letters: H W height and width of what is kept; lower case before it is cut.
"""

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

_UPRIGHT = (1, 0, 0, 0, 1)


class View:
  """How the frames of a stream are shown; `shape` is height and width.

  Args:
    frame: the first, whose side data say how all are turned.
    stream: theirs, which says the shape of a pixel.
  """

  def __init__(self, frame: VideoFrame, stream: VideoStream):
    matrix = frame.side_data.get("DISPLAYMATRIX")
    # A point (p, q) is shown at (ap + cq, bp + dq): ISO/IEC 14496-12, 6.2.2.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] if matrix else _UPRIGHT
    self.is_turned = abs(int(b)) > abs(int(a))
    x, y = (c, b) if self.is_turned else (a, d)
    self.steps = -1 if y < 0 else 1, -1 if x < 0 else 1
    self.aspect = float(stream.sample_aspect_ratio or 1)
    shape = frame.height, round(frame.width * self.aspect)
    self.shape = shape[::-1] if self.is_turned else shape
    self.reformat = VideoReformatter().reformat

  def put(self, frame: VideoFrame, out: np.ndarray) -> None:
    """Scales, cuts and turns a frame to `out`, with no copy between.

    Args:
      frame: of the stream.
      out: uint8 [H, W, 3]; the frame just covers it, and is cut to it evenly.
    """
    H, W = out.shape[1::-1] if self.is_turned else out.shape[:2]
    height, width = frame.height, frame.width * self.aspect
    scale = max(H / height, W / width)
    h, w = max(H, round(height * scale)), max(W, round(width * scale))
    rgb = self.reformat(
      frame, w, h, "rgb24", interpolation="BICUBIC", threads=1
    )
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(h, plane.line_size)
    top, left = (h - H) // 2, (w - W) // 2
    cut = rows[top : top + H, left * 3 : (left + W) * 3].reshape(H, W, 3)
    cut = cut.swapaxes(0, 1) if self.is_turned else cut
    out[:] = cut[:: self.steps[0], :: self.steps[1]]
