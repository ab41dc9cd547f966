"""The bench of a training step: figures of real processes that agree."""

import json
import os

import chex
import pytest

from configs import joint
from goku_jax.bench import __main__ as bench
from goku_jax.bench import step, step_process, training
from goku_jax.parallel import mesh as meshes
from goku_jax.typing import UserError
from tests import runs

RATES = {"mfu": "peak_tflops", "matmul_share": "matmul_tflops"}


@pytest.fixture
def one_device(monkeypatch):
  """Children have one device, and compile it as fast as they can."""
  flags = os.environ["XLA_FLAGS"].split()
  kept = [flag for flag in flags if "device_count" not in flag]
  monkeypatch.setenv("XLA_FLAGS", " ".join(kept))


@pytest.mark.slow
def test_a_step_is_timed_and_the_figures_agree(one_device):
  config = runs.read_config(total_steps=3)  # fewer than are timed
  found = step.measure(config, 3)
  assert (found["steps"], found["devices"]) == (3, 1)
  for fed in (found["without_data"], found["with_data"]):
    seconds, tokens = fed["step_seconds"], fed["tokens"]
    assert 0 < fed["min_step_seconds"] <= seconds
    most = config.data.num_packs * config.data.pack.tokens
    assert most / 2 < tokens <= most
    assert fed["tokens_per_second"] == pytest.approx(tokens / seconds)
    for share, rate in RATES.items():
      assert fed[share] == pytest.approx(fed["tflops"] / found[rate])
  assert found["peak_memory_gib"] > 0.05
  assert found["peak_memory_of"] == "process"
  assert found["peak_by"] == "measurement"
  for name, from_cache in (("cold", False), ("warm", True)):
    start = found[name]
    assert start["from_cache"] is from_cache
    parts = start["trace_seconds"] + start["compile_seconds"]
    assert 0 < parts < start["first_step_seconds"]


def test_the_work_of_a_step_is_counted_over_all_hosts():
  config = runs.read_config()
  with training.opened(config, 1) as run:
    batch = next(run.task.batches(0))
    half = {name: x[: len(x) // 2] for name, x in batch.items()}
    flops, tokens = run.work(batch)
    assert (flops, tokens) == run.task.work(batch)
    assert run.work(half)[1] == 2 * run.task.work(half)[1]


def test_without_data_packs_are_made_up_as_the_plan_says():
  config = joint.get_config("variant=8b,res=720p,debug=true")
  with training.opened(config, 2) as run:
    batch = next(run.task.batches(0))
    ids = batch["segment_ids_BL"]
    assert (ids == 1).sum(1).tolist() == [config.plan.segment] * len(ids)
    text = batch["text_segment_ids_BS"]
    assert (text == 1).sum(1).tolist() == [config.plan.text] * len(ids)
    run.time([run.place(batch)])
    chex.assert_tree_all_finite(run.state.params)


def test_products_run_at_the_models_own_sizes_on_every_device():
  config = runs.read_config(data__num_packs=1, data__pack__tokens=12)
  mesh = meshes.make_mesh(fsdp=2, sequence=2, tensor=2)
  assert 0 < step_process.matmul_flops(config, mesh) < 1e15


def test_a_mistake_in_the_config_ends_with_the_childs_status(one_device, capfd):
  config = runs.read_config(micro_batches=3)
  with pytest.raises(SystemExit) as error:
    step.measure(config, 1)
  assert error.value.code == 2
  (line,) = capfd.readouterr().err.splitlines()
  assert "num_packs=8 does not divide among 1 ranks" in line


def test_a_config_that_is_no_flow_is_refused():
  ask = lambda config: bench.main(
    "step", 1, 17, 256, 128, "float32", [], config=config
  )
  with pytest.raises(UserError, match="needs a --config of stage=flow"):
    ask(None)
  with pytest.raises(UserError, match="is not of stage=flow"):
    ask(runs.read_config("vae"))


@pytest.mark.slow
def test_a_config_and_steps_alone_mean_this_suite(tmp_path):
  flags = ["--config=configs/digits.py:debug", "--steps=2"]
  runs.run_job("bench", *flags, f"--json={tmp_path}/found.json")
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["steps"] == 2
  assert found["warm"]["from_cache"]
