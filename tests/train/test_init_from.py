"""A run begins at another one's weights, or says why it cannot."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest

from goku_jax import checkpoint
from goku_jax.sample.codec import Codec
from goku_jax.sample.restore import init_params, make_model
from goku_jax.train import init_from, loop
from goku_jax.train.step import init_state
from goku_jax.trees import flatten
from goku_jax.typing import UserError
from tests import runs


def read_tree(workdir, name, step=None):
  """A tree of a run's checkpoint, as numpy arrays by path."""
  step, about = checkpoint.saved_arrays(workdir, name, step)
  wanted = {k: jax.ShapeDtypeStruct(**x) for k, x in about.items()}
  return checkpoint.restore_run(workdir, name, wanted, step)[1]


def begin(source, more_ema=(), **changes):
  """The initial state of a run that takes another one's weights."""
  config = runs.read_config(init_from=str(source), **changes)
  init = functools.partial(init_params, make_model(config, Codec()))
  make = lambda rng: init_state(init(rng), optax.sgd(0.1), more_ema=more_ema)
  state = jax.jit(make)(jax.random.key(0))
  return init_from.begin(config, state, jax.eval_shape(lambda: state))


def assert_same(tree, saved):
  chex.assert_trees_all_equal(flatten(tree, "params"), saved)


def test_the_average_is_what_a_run_begins_at(flow_run, capsys):
  state = begin(flow_run, more_ema=(0.9,))
  saved = read_tree(flow_run, "ema")
  for tree in (state.params, state.ema, state.more_ema["ema_9"]):
    assert_same(tree, saved)
  told = f"begins at ema of step 4 of {flow_run}: {len(saved)} arrays taken\n"
  assert told in capsys.readouterr().out


def test_a_step_and_the_raw_weights_can_be_named(flow_run):
  state = begin(f"{flow_run}:2", init_weights="params")
  assert_same(state.params, read_tree(flow_run, "params", 2))
  new, old = (read_tree(flow_run, "params", step) for step in (4, 2))
  assert any((old[name] != new[name]).any() for name in old)


@pytest.mark.slow
def test_a_run_begins_there_and_goes_on_from_its_own(flow_run, tmp_path):
  """On longer and larger clips, which need no surgery: RoPE has no weights."""
  changes = dict(
    data__digits__num_frames=9,
    data__digits__canvas=24,
    data__pack__tokens=400,
    show_every_steps=100,
    init_from=str(flow_run),
  )
  rates = (1e-2, 0.0)
  for step, rate in enumerate(rates, start=1):
    config = runs.read_config(
      total_steps=step,
      optim__learning_rate=rate,
      optim__warmup_steps=0,
      **changes,
    )
    loop.train(config, tmp_path)
  at = [read_tree(tmp_path, "params", step) for step in (1, 2)]
  assert_same(at[0], at[1])
  old = read_tree(flow_run, "ema")
  assert any((old[name] != at[0][name]).any() for name in old)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"model__width": 64}, r"arrays \d+ of another shape \(.*\(32"),
    ({"model__num_classes": 10}, r"1 missing there \(.*class\.embedding\)"),
    ({"model__depth": 3}, "of another shape"),
    ({"init_weights": "ema_9"}, "no tree 'ema_9'; it has"),
  ],
)
def test_another_model_is_refused_by_its_arrays(flow_run, changes, told):
  with pytest.raises(UserError, match=told):
    begin(flow_run, **changes)


def test_what_no_weights_can_be_taken_from_is_refused(flow_run, tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(UserError, match="holds no run"):
    begin(empty)
  (empty / "config.json").write_text((flow_run / "config.json").read_text())
  with pytest.raises(UserError, match="has no whole checkpoint: train first"):
    begin(empty)
  with pytest.raises(UserError, match=r"manifest\.json is missing"):
    begin(f"{flow_run}:3")
  (empty / "config.json").write_text('{"stage": "vae"}')
  with pytest.raises(UserError, match=r"a run of stage=vae; .* stage=flow"):
    begin(empty)


def test_a_layer_that_a_stage_adds_is_made_or_left():
  kernel = {"shape": [4, 4], "dtype": "float32"}
  array = jax.ShapeDtypeStruct((4, 4), np.float32)
  added = "transformer.condition.kernel"
  assert init_from.compare("x", {"a": kernel}, {"a": array, added: array}) == (
    [added],
    [],
  )
  assert init_from.compare("x", {"a": kernel, added: kernel}, {"a": array}) == (
    [],
    [added],
  )
