"""A network whose every parameter matters, and samples to pack by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import transformer

P, E, CLASSES = 64, 24, 5  # 1x2x2 patches of 16 channels


def _fill(shapes, seed=7):
  """Parameters drawn by numpy, in no time, with nothing left at zero.

  At its start adaLN-Zero would hide most of the network.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, x = path[-1].key, rng.standard_normal(leaf.shape, np.float32)
    if name in ("kernel", "embedding"):
      return jnp.asarray(x / np.sqrt(np.prod(leaf.shape[:-1])))
    return jnp.asarray(0.1 * x + (name == "scale"))

  return jax.tree.map_with_path(draw, shapes)


def _sample(seed, grid, text=3, t=0.5, label=0, dropped=False):
  """One clip on a grid of tokens, with its caption's embeddings."""
  rng = np.random.default_rng(seed)
  positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
  return dict(
    tokens=rng.standard_normal((np.prod(grid), P), np.float32),
    positions=positions.reshape(-1, 3),
    text=rng.standard_normal((text, E), np.float32),
    t=t,
    label=label,
    dropped=dropped,
  )


EMPTY = np.random.default_rng(99).standard_normal((1, E), np.float32)


def _pack(samples, *, L=32, S=16, G=4, empty=EMPTY):
  """Arguments of `Transformer` for one pack, its tail left as padding."""
  tokens, text = np.zeros((1, L, P)), np.zeros((1, S, E))
  ids, text_ids = np.zeros((1, L), int), np.zeros((1, S), int)
  positions = np.zeros((1, L, 3), int)
  t, label = np.zeros((1, G)), np.zeros((1, G), int)
  dropped = np.zeros((1, G), bool)
  text[0, :1], text_ids[0, :1] = empty, transformer.NULL_TEXT
  i, j = 0, 1
  for g, sample in enumerate(samples):
    n, m = len(sample["tokens"]), len(sample["text"])
    here, there = np.s_[0, i : i + n], np.s_[0, j : j + m]
    tokens[here], positions[here] = sample["tokens"], sample["positions"]
    text[there] = sample["text"]
    ids[here], text_ids[there] = g + 1, g + 1
    t[0, g], label[0, g] = sample["t"], sample["label"]
    dropped[0, g] = sample["dropped"]
    i, j = i + n, j + m
  args = tuple(
    map(jnp.asarray, (np.float32(tokens), np.float32(t), ids, positions))
  )
  return args, dict(
    text_BSE=jnp.asarray(text, jnp.float32),
    text_segment_ids_BS=jnp.asarray(text_ids),
    class_BG=jnp.asarray(label),
    dropped_BG=jnp.asarray(dropped),
  )


@pytest.fixture(scope="session")
def fill():
  return _fill


@pytest.fixture(scope="session")
def make_sample():
  return _sample


@pytest.fixture(scope="session")
def pack():
  return _pack


@pytest.fixture(scope="session")
def make_model():
  """`(model, params)` of a debug network with text and classes."""

  def make(**sizes):
    sizes = dict(text_width=E, num_classes=CLASSES) | sizes
    config = transformer.TransformerConfig(
      **transformer.VARIANTS["debug"] | sizes
    )
    model = transformer.Transformer(config)
    args, kwargs = _pack([_sample(0, (1, 2, 2))])
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args, **kwargs)
    return model, _fill(shapes["params"])

  return make


@pytest.fixture(scope="session")
def debug_model(make_model):
  return make_model()
