"""LPIPS with the weights that `convert --format=lpips` wrote.

Letters: N images, T frames, H W height and width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from goku_jax import trees, weights
from goku_jax.models.judges.lpips import LPIPS, abstract_params


def load(folder) -> Callable:
  """Distances [N] of images [N, H, W, 3] in [-1, 1].

  Raises:
    UserError: the folder is damaged, or holds the weights of something else.
  """
  params, _ = weights.load(folder)
  wanted = trees.shapes(abstract_params())
  trees.check_shapes(trees.shapes(params), wanted, f"the weights in {folder}")
  return functools.partial(LPIPS().apply, {"params": params})


def of_clips(lpips_fn) -> Callable:
  """Distances [T] of uint8 clips [T, H, W, 3], one at a time."""
  pixels = lambda frame: frame[None].astype(jnp.float32) / 127.5 - 1
  each = lambda pair: lpips_fn(*map(pixels, pair))[0]
  return jax.jit(lambda *clips: jax.lax.map(each, clips))
