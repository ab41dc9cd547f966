"""Random numbers that are a function of names, in any order of asking.

numpy's generators promise no stream across versions, and a generator for each
sample costs ten microseconds. These are splitmix64 (Steele, Lea, Flood 2014)
over whole arrays of indices: the same numbers on every machine, for ever.
"""

import numpy as np

_MASK = 2**64 - 1


def bits(*words) -> np.ndarray:
  """64 random bits for each element of the (broadcast) integer `words`."""
  hashed = np.zeros(1, np.uint64)
  with np.errstate(over="ignore"):
    for word in words:
      if isinstance(word, int):
        word = word & _MASK
      hashed = _mix(hashed ^ np.asarray(word).astype(np.uint64))
  return hashed


def uniform(*words) -> np.ndarray:
  """Uniform numbers in [0, 1), one for each element of `words`."""
  return (bits(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, *words: int) -> np.ndarray:
  """A random order of `range(n)`."""
  return np.argsort(bits(*words, np.arange(n)), kind="stable")


def _mix(x):
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
