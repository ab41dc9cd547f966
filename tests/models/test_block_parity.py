"""Our block, rotary tables and time features are those of torch.

The plain suite compares with frozen arrays; `--parity` makes them anew.
"""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import attention, layers, rope, transformer

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
SCRIPT = runpy.run_path(str(FOLDER / "goku_block.py"))
GRID = np.stack(
  np.meshgrid(*map(np.arange, SCRIPT["GRID"]), indexing="ij"), -1
).reshape(1, -1, 3)


def ours():
  """What the script's `reference` holds, by our code."""
  head = SCRIPT["WIDTH"] // SCRIPT["HEADS"]
  tables = rope.rope_tables(jnp.asarray(GRID), head)
  out = {"cos": tables[0][0], "sin": tables[1][0]}
  out["time_features"] = layers.timestep_features(jnp.asarray(SCRIPT["TIMES"]))
  for bias in (False, True):
    for rotate in (False, True):
      out[f"block_{bias:d}{rotate:d}"] = block(tables, bias, rotate)
  return out


def block(tables, bias, rotate):
  cfg = transformer.TransformerConfig(
    width=SCRIPT["WIDTH"],
    depth=1,
    num_heads=SCRIPT["HEADS"],
    text_width=SCRIPT["TEXT"],
    attention_bias=bias,
    rotate_cross_queries=rotate,
  )
  x, c, text = map(jnp.asarray, SCRIPT["inputs"]().values())
  ones = jnp.ones(x.shape[:2], int)
  pack = dict(
    segment_ids_BL=ones,
    one_hot_BLG=ones[..., None].astype(jnp.float32),
    rope=tables,
    text_queries_BL=ones,
    has_text_BL=ones > 0,
    text_ids_BS=jnp.ones(text.shape[:2], int),
  )
  module = transformer.Block(cfg, attention.segment_attention)
  variables = {"params": SCRIPT["parameters"](bias)}
  args = (variables, x, c[:, None], text, pack)
  return jax.jit(module.apply)(*args)[0]


def compare(out, expected):
  assert out.keys() == expected.keys()
  for name, array in expected.items():
    # Angles reach 1000 radians: float32 itself is off by 6e-5 there.
    relative = 1e-4 if name == "time_features" else 1e-5
    gap = np.abs(np.asarray(out[name]) - array).max()
    assert gap <= relative * np.abs(array).max(), name


def test_frozen_arrays_of_torch_are_met():
  with np.load(FOLDER / "goku_block.npz") as frozen:
    compare(ours(), dict(frozen))


@pytest.mark.parity
def test_torch_and_diffusers_give_the_same_now():
  expected = SCRIPT["reference"]()
  compare(ours(), expected)
  with np.load(FOLDER / "goku_block.npz") as frozen:
    compare(expected, dict(frozen))


def test_the_switch_for_rotated_queries_and_the_biases_matter():
  out = ours()
  blocks = [out[f"block_{i}{j}"] for i in (0, 1) for j in (0, 1)]
  for i, one in enumerate(blocks):
    for other in blocks[:i]:
      assert np.abs(one - other).max() > 1e-3
