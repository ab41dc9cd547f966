"""The batches, stated once: every array, its dtype and its meaning.

The letters at the end of a name are its shape:

  B packs (or clips, or images)   L tokens a pack      P numbers a token
  S text tokens a pack            G segments a pack    3 is three
  E numbers a text token          T H W frames, height, width     C colours
  K numbers of a token's condition

Segment g, from 1, is the g-th sample of its pack: it is column g - 1 of the
arrays that end in G. A single image is a video of one frame.
"""

import numpy as np

from goku_jax.typing import UserError

PADDING = 0  # in segment_ids and text_segment_ids
EMPTY_CAPTION = -1  # in text_segment_ids
NO_LOGVAR = -30.0  # exp(-15) is no noise in float32
NO_TEXT = np.zeros((1, 0), np.float16)  # embedding of no caption by no encoder

FLOW = {
  # Posterior mean of the latents, each channel of unit variance, patchified.
  "tokens_BLP": np.float32,
  # Log-variance of the posterior in the same units; NO_LOGVAR where none.
  "tokens_logvar_BLP": np.float32,
  # What is given of the clip (data/given.py), patchified; K = 0 where the model
  # takes nothing.
  "condition_BLK": np.float32,
  # 1..G, or PADDING.
  "segment_ids_BL": np.int32,
  # (t, h, w) of the token on its own sample's grid.
  "positions_BL3": np.int32,
  # Pieces of the captions (tokenize.py).
  "text_ids_BS": np.int32,
  # Embeddings of the captions by a text encoder; E = 0 where the model reads
  # the pieces.
  "text_embeddings_BSE": np.float16,
  # 1..G, PADDING, or EMPTY_CAPTION: one [EOS] in every pack, to which segments
  # whose caption is dropped attend instead of their own.
  "text_segment_ids_BS": np.int32,
  # Place in the caption.
  "text_positions_BS": np.int32,
  # The sample's global index in its source, -1 where there is no segment.
  "sample_index_BG": np.int32,
  # How many times the sample was seen before: the epoch.
  "visit_BG": np.int32,
  # What the sample's flow time is made of, in [0, 1): one number in each of as
  # many equal parts as the whole step has samples. 0 outside of training.
  "quantile_BG": np.float32,
  # Class label, 0 where the source has none.
  "class_BG": np.int32,
}

VAE = {
  # Clips of 4k+1 frames, and single images; colours 0 to 255.
  "video_BTHWC": np.uint8,
  "image_BTHWC": np.uint8,
  # Global index and visit of each, as above.
  "video_index_B": np.int32,
  "video_visit_B": np.int32,
  "image_index_B": np.int32,
  "image_visit_B": np.int32,
}


def shape_of(name: str, **sizes: int) -> tuple[int, ...]:
  """The shape that a name's last part spells: `shape_of("x_BL3", B=2, L=5)`."""
  letters = name.rsplit("_", 1)[-1]
  return tuple(int(c) if c.isdigit() else sizes[c] for c in letters)


def empty_packs(**sizes: int) -> dict[str, np.ndarray]:
  """Packs without a sample, as many as `B` says; `E`, `K` are 0 by default."""
  sizes = {"E": 0, "K": 0} | sizes
  batch = {k: np.zeros(shape_of(k, **sizes), v) for k, v in FLOW.items()}
  batch["tokens_logvar_BLP"].fill(NO_LOGVAR)
  batch["sample_index_BG"].fill(-1)
  return batch


def check_frames(num_frames: int):
  """Refuses lengths that no clip has; clips have 4k+1 frames."""
  if num_frames < 1 or num_frames % 4 != 1:
    below = max(1, (num_frames - 1) // 4 * 4 + 1)
    raise UserError(
      f"num_frames={num_frames} is not 4k+1: the nearest are {below} and"
      f" {below + 4}"
    )
