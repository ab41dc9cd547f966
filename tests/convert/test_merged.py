"""A run with adapters: it saves them alone, goes on, and is merged."""

import shutil

import chex
import jax
import numpy as np
import pytest
from flax import traverse_util

from goku_jax.convert import formats
from goku_jax.models import lora
from goku_jax.parallel import mesh as meshes
from goku_jax.sample import draw
from goku_jax.sample.restore import restore
from goku_jax.train import loop
from goku_jax.typing import UserError
from tests import runs


def read_config(base, **changes):
  config = runs.read_config(
    total_steps=4,
    save_every_steps=2,
    show_every_steps=100,
    init_from=str(base),
    init_weights="params",
    optim__learning_rate=0.1,
    **changes,
  )
  with config.unlocked():
    config.model.lora = dict(rank=2, alpha=2.0, targets="blocks/.*attn/")
  return config


@pytest.fixture(scope="module")
def lora_run(flow_run, made_once):
  """A run on the last weights of `flow_run`, in one go."""

  def make(path):
    path.mkdir()
    loop.train(read_config(f"{flow_run}:4"), path)

  return made_once("lora_run", make)


def test_a_run_saves_adapters_alone(lora_run, flow_run):
  saved = runs.read_arrays(lora_run)
  assert saved["params"]
  assert all("_lora." in path for path in saved["params"])
  assert "base" not in saved
  size = lambda tree: sum(x.size for x in tree.values())
  assert size(saved["params"]) < size(runs.read_arrays(flow_run)["params"]) / 10
  assert any(x.any() for p, x in saved["params"].items() if p.endswith(".b"))


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_as_one(flow_run, tmp_path):
  for name, ends in (("cut", (2, 4)), ("whole", (4,))):
    (tmp_path / name).mkdir()
    for total in ends:
      config = read_config(f"{flow_run}:4", optim__schedule="constant")
      with config.unlocked():
        config.total_steps = total
      loop.train(config, tmp_path / name)
  for step in (2, 4):
    one, two = (runs.read_arrays(tmp_path / x, step) for x in ("cut", "whole"))
    chex.assert_trees_all_equal(one, two)


def test_what_samples_is_the_sum_of_both(lora_run, flow_run):
  run = restore(lora_run, weights="params")
  assert run.model.lora is None
  base = restore(flow_run, weights="params").params
  chex.assert_trees_all_equal_shapes(run.params, base)
  flat = runs.read_arrays(lora_run)["params"]
  adapters = traverse_util.unflatten_dict(flat, sep=".")
  expected = lora.merge(lora.join(adapters, base), rank=2, alpha=2.0)
  chex.assert_trees_all_close(run.params, expected, atol=1e-7)
  q = lambda tree: tree["transformer"]["blocks"]["self_attn"]["q"]["kernel"]
  assert (np.asarray(q(run.params)) != np.asarray(q(base))).any()


def test_eight_devices_merge_as_one_does(lora_run):
  one, eight = restore(lora_run), restore(lora_run, mesh=meshes.make_mesh(1, 8))
  chex.assert_trees_all_close(one.params, eight.params, atol=1e-6)


def test_a_merged_run_is_a_run_of_its_own(lora_run, tmp_path):
  out = tmp_path / "merged"
  told = formats.convert(lora_run, "lora", out, reverse=False)
  assert told["step"] == 4
  one = restore(lora_run)
  count = sum(x.size for x in jax.tree.leaves(one.params))
  assert told["parameters"] == count
  prompts, how = ["the digit five moves left"], dict(num_frames=5, num_steps=2)
  how |= dict(size=(16, 16), guidance_scale=2.0, shift=3.0, seed=0)
  for weights in ("ema", "params"):
    one, two = (restore(path, weights=weights) for path in (lora_run, out))
    chex.assert_trees_all_equal(one.params, two.params)
  one, two = (draw.draw(run, prompts, **how) for run in (one, two))
  chex.assert_trees_all_equal(one, two)
  config = read_config(out)
  with config.unlocked():
    del config.model.lora
    config.total_steps = 1
  (tmp_path / "next").mkdir()
  loop.train(config, tmp_path / "next")  # from stage to stage
  with pytest.raises(UserError, match="merged is not empty: choose another"):
    formats.convert(lora_run, "lora", out, reverse=False)


def test_what_cannot_be_adapted_is_refused(lora_run, flow_run, tmp_path):
  named = "adapts the weights of one step of a run: set config.init_from=DIR"
  for base in ("", flow_run):  # and no step of it
    with pytest.raises(UserError, match=named):
      loop.train(read_config(base), tmp_path / "a")
  with pytest.raises(UserError, match="alone: merge them first, with convert"):
    loop.train(read_config(f"{lora_run}:4"), tmp_path / "b")
  shutil.copytree(lora_run, tmp_path / "other")
  for changes in ({"init_from": f"{flow_run}:2"}, {"init_weights": "ema"}):
    config = read_config(f"{flow_run}:4")
    with config.unlocked():
      config.update(changes)
    with pytest.raises(UserError, match="is not what the adapters"):
      loop.train(config, tmp_path / "other")
  with pytest.raises(UserError, match="has no adapters, so there is nothing"):
    formats.convert(flow_run, "lora", tmp_path / "c", reverse=False)
