"""The bench of steps beside PyTorch compares equals, and its figures agree."""

import json

import jax
import jax.numpy as jnp
import pytest

from goku_jax.bench import peer
from tests import runs


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_are_timed_and_the_figures_agree(tmp_path):
  flags = ["--suite=peer", "--variant=debug", "--tokens=64", "--rounds=1"]
  runs.run_job("bench", *flags, f"--json={tmp_path}/found.json")
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["tokens"] == 64
  ours, theirs = found["seconds"], found["peer_seconds"]
  assert found["ratio"] == pytest.approx(theirs / ours)
  flops = found["model_flops"] / 1e9
  assert found["gflops"] == pytest.approx(flops / ours)
  assert found["peer_gflops"] == pytest.approx(flops / theirs)
  reached = found["linear_gflops"] / found["matmul_gflops"]
  assert found["linear_share"] == pytest.approx(reached)


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_multiply_by_kernels_of_the_same_sizes():
  model = peer.make_model("debug")
  params, _ = peer.init(model, tokens=16)
  ours = [
    sorted(kernel.size for kernel in block.values())
    for block in peer.block_kernels(params)
  ]
  theirs = [
    sorted(
      weight.numel()
      for name, weight in block.named_parameters()
      if name.endswith(".weight") and weight.ndim == 2
    )
    for block in peer.make_peer(model.config)["blocks"]
  ]
  assert ours == theirs


def test_flops_of_linear_layers_are_those_that_the_compiler_counts():
  model = peer.make_model("debug")
  params, (*_, text_BSD, _) = peer.init(model, tokens=48)
  kernels = peer.block_kernels(params)
  x_LD = jnp.ones((48, model.config.width))
  step = jax.jit(jax.grad(peer.chain, (0, 1)))
  compiled = step.lower(kernels, x_LD, text_BSD[0]).compile()
  assert compiled.cost_analysis()["flops"] == pytest.approx(
    peer.linear_flops(model.config, 48), rel=0.05
  )
