"""Seconds of packs on this device: the table that `costs.calibrated` reads.

Letters: B packs, L tokens, P numbers a token, S text tokens, E text width,
G segments.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import costs
from goku_jax.models.goku import make_goku

TEXT = 32  # text tokens a segment
COUNTS = (1, 2, 4, 8, 16)  # segments of a pack
FILLS = (1, 0.75, 0.5)


def measure(rounds: int, variant: str, tokens: int, dtype: str) -> dict:
  """Rows of tokens, attention blocks and seconds, one for each layout.

  A pack has room for `tokens`; forward and backward of the model are timed,
  the fastest round of each layout counts.
  """
  model = make_goku(variant, dtype=dtype)
  layouts = [
    [int(fill * tokens) // count] * count for count in COUNTS for fill in FILLS
  ]
  batches = [_batch(layout, tokens) for layout in layouts]
  E, P = model.config.text_width, model.config.patch_width
  fixed = (
    jnp.ones((1, tokens, P), dtype),
    jnp.zeros((1, max(COUNTS))),
    jnp.ones((1, TEXT * max(COUNTS), E), dtype) if E else None,
    jnp.zeros((1, max(COUNTS)), bool),
  )

  def loss(params, batch, tokens_BLP, t_BG, text_BSE, dropped_BG):
    args = (tokens_BLP, t_BG, batch, text_BSE, dropped_BG)
    return jnp.square(model.apply(params, *args, method="velocity")).mean()

  init = lambda rng: model.init(
    rng, fixed[0], fixed[1], batches[0], *fixed[2:], method="velocity"
  )
  params = jax.jit(init)(jax.random.key(0))
  step = jax.jit(jax.grad(loss))
  seconds = np.full((rounds + 1, len(batches)), np.inf)
  for i in range(rounds + 1):  # the first compiles
    for k, batch in enumerate(batches):
      start = time.perf_counter()
      jax.block_until_ready(step(params, batch, *fixed))
      seconds[i, k] = time.perf_counter() - start
  best = seconds[1:].min(0).tolist()
  blocks = [
    costs.attention_blocks(layout, block_q=costs.BLOCK, block_k=costs.BLOCK)
    for layout in layouts
  ]
  used = [sum(layout) for layout in layouts]
  return {
    "block": costs.BLOCK,
    "rows": list(zip(used, blocks, best, strict=True)),
  }


def _batch(layout, tokens):
  """The arrays of a pack that the model reads."""
  G = max(COUNTS)
  segment = np.repeat(np.arange(1, len(layout) + 1), layout)
  ids = np.zeros((1, tokens), np.int32)
  ids[0, : len(segment)] = segment
  text_ids = np.repeat(np.arange(1, G + 1), TEXT)[None].astype(np.int32)
  return {
    "segment_ids_BL": ids,
    "positions_BL3": np.zeros((1, tokens, 3), np.int32),
    "text_segment_ids_BS": text_ids,
    "class_BG": np.zeros((1, G), np.int32),
  }
