"""The formula against the published table and against the model itself."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from goku_jax import costs
from goku_jax.models.goku import make_goku
from goku_jax.typing import UserError

GOKU_8B = dict(width=3072, depth=40, patch_width=64, text_width=2048)


@pytest.mark.parametrize(
  ("tokens", "forward", "training", "share"),
  [
    (14_400, 0.256e15, 0.77e15, 0.40),
    (40_500, 1.24e15, 3.72e15, 0.65),
    (75_600, 3.62e15, 10.9e15, 0.78),
    (221_184, 26.4e15, 79.2e15, 0.91),
  ],
)
def test_goku_8b_costs_what_the_table_says(tokens, forward, training, share):
  flops = costs.flow_flops([tokens], [256], **GOKU_8B)
  assert flops == pytest.approx(forward, rel=5e-3)
  assert costs.training_flops([tokens], [256], **GOKU_8B) == pytest.approx(
    training, rel=5e-3
  )
  attention = 40 * 4 * tokens**2 * 3072
  assert attention / flops == pytest.approx(share, abs=0.01)


def test_packing_adds_up_and_padding_costs_nothing():
  apart = [costs.flow_flops([s], [t], **GOKU_8B) for s, t in [(64, 5), (9, 7)]]
  together = costs.flow_flops([64, 9], [5, 7], **GOKU_8B)
  assert together == pytest.approx(sum(apart), rel=1e-12)
  image = dict(width=32, depth=2, patch_width=16)
  assert costs.flow_flops([64, 0], **image) == costs.flow_flops([64], **image)


def _product_flops(jaxpr, swap):
  """FLOPs of the matrix products in a jaxpr, scans multiplied out.

  RoPE's exchange of pairs, a product with a matrix of the shape `swap`, is no
  work of the model.
  """
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      sizes = eqn.invars[0].aval.shape
      if eqn.invars[1].aval.shape == swap:
        continue
      depth = 1
      for dim in contracted:
        depth *= sizes[dim]
      total += 2 * depth * eqn.outvars[0].aval.size
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    for inner in jaxprs_in_params(eqn.params):
      total += times * _product_flops(inner, swap)
  return total


@pytest.mark.parametrize("text_width", [0, 48])
def test_formula_counts_the_products_of_the_model(text_width):
  model = make_goku("debug", text_width=text_width, depth=3, width=256)
  tokens, text, p = 128, 32, model.config.patch_width
  batch = dict(
    segment_ids_BL=jnp.ones((1, tokens), jnp.int32),
    positions_BL3=jnp.zeros((1, tokens, 3), jnp.int32),
    text_segment_ids_BS=jnp.ones((1, text), jnp.int32),
    class_BG=jnp.zeros((1, 1), jnp.int32),
  )
  text_BSE = jnp.zeros((1, text, text_width)) if text_width else None
  args = (
    jnp.zeros((1, tokens, p)),
    jnp.zeros((1, 1)),
    batch,
    text_BSE,
    jnp.zeros((1, 1), bool),
  )
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), *args, method="velocity")
  )
  jaxpr = jax.make_jaxpr(
    lambda variables: model.apply(variables, *args, method="velocity")
  )(variables)
  flops = costs.flow_flops(
    [tokens],
    [text],
    width=256,
    depth=3,
    patch_width=p,
    text_width=text_width,
  )
  # Beyond the formula: the time's MLP and spreading what belongs to a segment.
  assert flops <= _product_flops(jaxpr.jaxpr, (128, 128)) <= 1.03 * flops


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU7x", 1153.5e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
  ],
)
def test_peak_of_a_known_chip_counts_every_device(kind, peak):
  devices = [SimpleNamespace(device_kind=kind, process_index=0)] * 3
  assert costs.peak_flops(devices) == 3 * peak


@pytest.mark.parametrize(
  ("kind", "gib", "network", "clock"),
  [
    ("TPU v4", 32, None, None),
    ("TPU v5 lite", 16, 200e9, 1.5e9),
    ("TPU v5p", 95, 540e9, 1.75e9),
    ("TPU v6 lite", 32, 400e9, 1.75e9),
    ("TPU7x", 96, None, 2.2e9),
    ("NVIDIA H200", 141e9 / 2**30, 450e9, None),
    ("NVIDIA A100-SXM4-80GB", None, None, None),
  ],
)
def test_chips_are_what_their_vendors_say(kind, gib, network, clock):
  chip = costs.find_chip(kind)
  assert chip.hbm == (gib and gib * 2**30)
  assert chip.network_speed == network
  assert chip.clock == (clock and pytest.approx(clock, rel=2e-3))


@pytest.mark.parametrize(
  ("kind", "ridge"),
  [
    ("TPU v5e", 240),
    ("TPU v5", 166),
    ("TPU v6e", 560),
    ("TPU7x", 312),
    ("NVIDIA H100 80GB HBM3", 295),
    ("NVIDIA H200", 206),
  ],
)
def test_peak_over_bandwidth_is_the_ridge_that_is_published(kind, ridge):
  chip = costs.find_chip(kind)
  assert chip.flops / chip.hbm_speed == pytest.approx(ridge, rel=5e-3)


def test_a_chip_that_is_not_known_is_none():
  assert costs.find_chip("cpu") is None


def test_peak_of_a_cpu_is_measured_once_for_all_pretend_devices():
  total = costs.peak_flops()
  assert 1e9 < total < 1e13
  assert costs.peak_flops(jax.devices()[:1]) == total
  assert costs.mfu(total, 2.0, total) == 0.5


def _brute_force_blocks(segments, block_q, block_k):
  """Blocks of the whole mask that hold anything."""
  ids = np.repeat(np.arange(len(segments)), segments)
  meet = ids[:, None] == ids
  starts_q = range(0, len(ids), block_q)
  starts_k = range(0, len(ids), block_k)
  return sum(
    bool(meet[q : q + block_q, k : k + block_k].any())
    for q in starts_q
    for k in starts_k
  )


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_those_of_the_mask(seed):
  rng = np.random.default_rng(seed)
  segments = rng.integers(0, 60, rng.integers(1, 12)).tolist()
  for block_q, block_k in ((1, 1), (16, 16), (16, 8), (5, 32), (1000, 1000)):
    found = costs.attention_blocks(segments, block_q=block_q, block_k=block_k)
    assert found == _brute_force_blocks(segments, block_q, block_k)


def test_a_pack_of_whole_blocks_costs_what_it_needs():
  segments, texts = [256, 128, 512], [3, 9, 20]
  needed = costs.flow_flops(segments, texts, **GOKU_8B)
  assert costs.pack_flops(segments, texts, block=128, **GOKU_8B) == needed
  assert costs.pack_flops(segments, texts, block=512, **GOKU_8B) > needed
  short = dict(width=32, depth=3, patch_width=16)
  more = costs.pack_flops([10, 6], block=8, **short)  # 4 blocks of 64 pairs
  more -= costs.flow_flops([10, 6], **short)
  assert more == 3 * 4 * 32 * (4 * 64 - 10**2 - 6**2)
  assert costs.attention_blocks([], block_q=8, block_k=8) == 0


def test_a_clip_costs_as_much_as_packs_of_images():
  of = lambda *segments: costs.pack_flops(
    segments, [256] * len(segments), block=512, **GOKU_8B
  )
  assert 4 < of(90_000) / of(*[1_000] * 90) < 6


def _write_table(path, rows):
  path.write_text(json.dumps({"block": 128, "rows": rows}))
  return costs.calibrated(str(path))


def test_measured_times_are_fitted(tmp_path):
  truth = lambda tokens, blocks: 0.5 + 1e-4 * tokens + 2e-3 * blocks
  layouts = ([1024], [512, 512], [100] * 8, [900, 20], [64])
  count = lambda layout: costs.attention_blocks(
    layout, block_q=128, block_k=128
  )
  rows = [[sum(x), count(x), truth(sum(x), count(x))] for x in layouts]
  seconds = _write_table(tmp_path / "table.json", rows)
  for layout in (*layouts, [4096], [300, 700]):
    expected = truth(sum(layout), count(layout))
    assert seconds(layout, [5] * len(layout)) == pytest.approx(
      expected, rel=1e-4
    )


def test_no_measured_cost_is_negative(tmp_path):
  rows = [[100, 9, 1.0], [200, 4, 2.0], [300, 1, 3.1], [400, 2, 3.9]]
  seconds = _write_table(tmp_path / "table.json", rows)
  assert seconds([400]) <= seconds([400, 400])
  assert seconds([512]) >= seconds([128] * 4) > 0


@pytest.mark.parametrize(
  "text", ["", "[]", "{}", '{"block": 8, "rows": []}', '{"rows": [[1, 2, 3]]}']
)
def test_what_is_no_table_of_times_is_refused(tmp_path, text):
  (tmp_path / "table.json").write_text(text)
  with pytest.raises(UserError, match=r"table.json is no table"):
    costs.calibrated(str(tmp_path / "table.json"))
  with pytest.raises(UserError, match=r"nothing.json is no table"):
    costs.calibrated(str(tmp_path / "nothing.json"))
