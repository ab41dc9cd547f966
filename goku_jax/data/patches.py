"""Latents cut into tokens and back, on one sample.

A token is a patch of `patch_size` (frames, height, width), its numbers in the
order (pt ph pw c); tokens go in the order (t h w) of their grid.
"""

import einops
import numpy as np
from jaxtyping import Int32, Num

_TOKENS = "(t pt) (h ph) (w pw) c -> (t h w) (pt ph pw c)"
_LATENTS = "(t h w) (pt ph pw c) -> (t pt) (h ph) (w pw) c"


def token_grid(shape, patch_size) -> tuple[int, int, int]:
  """Tokens along frames, height and width of latents `[T, H, W, ...]`."""
  if any(n % p for n, p in zip(shape[:3], patch_size, strict=True)):
    raise ValueError(
      f"latents of {tuple(shape[:3])} frames, height and width do not divide "
      f"into patches of {tuple(patch_size)}"
    )
  t, h, w = (n // p for n, p in zip(shape[:3], patch_size, strict=True))
  return t, h, w


def patchify(
  latents_THWC: Num[np.ndarray, "T H W C"], patch_size
) -> Num[np.ndarray, "n P"]:
  """Tokens of latents."""
  token_grid(latents_THWC.shape, patch_size)
  pt, ph, pw = patch_size
  return einops.rearrange(latents_THWC, _TOKENS, pt=pt, ph=ph, pw=pw)


def unpatchify(
  tokens_nP: Num[np.ndarray, "n P"], grid, patch_size
) -> Num[np.ndarray, "T H W C"]:
  """Latents of tokens on a grid (t, h, w)."""
  (t, h, w), (pt, ph, pw) = grid, patch_size
  return einops.rearrange(
    tokens_nP, _LATENTS, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw
  )


def grid_positions(grid) -> Int32[np.ndarray, "n 3"]:
  """Positions (t, h, w) of the tokens of a grid."""
  return np.indices(grid, np.int32).reshape(3, -1).T
