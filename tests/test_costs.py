"""The formula against the published table and against the model itself."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from goku_jax import costs
from goku_jax.models.goku import make_goku

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


def _product_flops(jaxpr):
  """FLOPs of the matrix products in a jaxpr, scans multiplied out."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      sizes = eqn.invars[0].aval.shape
      depth = 1
      for dim in contracted:
        depth *= sizes[dim]
      total += 2 * depth * eqn.outvars[0].aval.size
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    for inner in jaxprs_in_params(eqn.params):
      total += times * _product_flops(inner)
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
  assert flops <= _product_flops(jaxpr.jaxpr) <= 1.03 * flops


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


def test_peak_of_a_cpu_is_measured_once_for_all_pretend_devices():
  total = costs.peak_flops()
  assert 1e9 < total < 1e13
  assert costs.peak_flops(jax.devices()[:1]) == total
  assert costs.mfu(total, 2.0, total) == 0.5
