"""Plans of the debug config: whole with the TPU's compiler, or refused."""

import json

import jax
import numpy as np
import pytest

from goku_jax import config, costs
from goku_jax.plan import bundles, program, report, step, topology
from goku_jax.plan import plan as plans
from goku_jax.plan import search as searches
from goku_jax.typing import UserError
from tests import runs
from tests.golden import collectives
from tests.golden.collectives import TOKENS, WIDTH

SPEC = f"{runs.ROOT}/configs/joint.py:"


def read(arg, **overrides):
  found = config.read_config(SPEC + arg)
  with found.unlocked():
    found.update_from_flattened_dict(
      {key.replace("__", "."): value for key, value in overrides.items()}
    )
  return found.lock()


@pytest.mark.tpu
def test_the_job_plans_and_says_so_in_json(tmp_path):
  path = tmp_path / "plan.json"
  runs.run_job(
    "plan",
    f"--config={SPEC}debug",
    "--config.mesh.sequence=2",
    "--config.attention.block=256",  # to compile large ones takes a minute
    "--config.attention.key_block=256",
    "--topology=v5e:2x4",
    f"--json={path}",
  )
  found = json.loads(path.read_text())
  assert found["mesh"] == dict(replica=1, fsdp=4, sequence=2, tensor=1)
  assert 0 < found["hbm_share"] < 0.1
  assert 0 < found["mfu_ceiling"] < 1
  assert 0 < found["token_exchange_share"] < 1
  layer = found["collectives"]["a_layer"]
  # Queries, keys, values there and the output back: forward, again, backward.
  assert layer["all-to-all"]["count"] == 12
  assert "parameters" in found
  assert "model_flops" in found


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", collectives.STRATEGIES)
def test_a_layer_exchanges_what_the_golden_table_says(name):
  wanted = json.loads(collectives.PATH.read_text())
  assert wanted.keys() == collectives.STRATEGIES.keys()
  assert collectives.table(name) == wanted[name]


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["fsdp", "ulysses"])
def test_layers_reduce_no_weights_and_gather_no_tokens(name):
  text, memory, state = collectives.compiled(name)
  inside = [x for x in program.collectives(text) if x.loops]
  weight = WIDTH**2  # the smallest of a layer
  large = lambda kind: [
    x for x in inside if x.kind == kind and np.prod(x.shape) >= weight
  ]
  # Of text are keys and values, which have a dim of heads.
  assert not [x for x in large("all-reduce") if x.shape[-2:] != (8, 64)]
  assert len(large("all-gather")) >= 8
  assert not [x for x in large("all-gather") if x.shape[-2:] == (TOKENS, WIDTH)]
  donated = sum(
    np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(state)
  )
  assert memory.aliased == pytest.approx(donated, rel=0.1)


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_layers_make_no_array_that_is_needless():
  text, *_ = collectives.compiled("ulysses")
  here = TOKENS // 2  # of a pack, on a device
  for array in program.shapes(text):
    assert array.shape[-2:] != (TOKENS, TOKENS), array
    if array.loops and here in array.shape:
      assert 6 * WIDTH not in array.shape, array  # all modulations
      # Backward the compiler widens what comes out of rotations.
      backward = "rematted" not in array.source and "checkpoint" in array.source
      wide = np.prod(array.shape) >= 2 * here * WIDTH
      of_kernel = array.op == "custom-call"  # its log-sum-exp, by lanes
      needless = wide and array.dtype == "f32" and not of_kernel
      assert backward or not needless, array


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sampling_is_planned_and_only_exchanges_forward():
  found = read("debug", mesh__sequence=2)
  devices = topology.find_devices("v5e:2x4")
  found = step.for_sampling(found, devices)
  assert found.data.pack.tokens == 256  # a clip of 8, in whole lanes of both
  plan, _ = plans.compile_plan(found, "v5e:2x4", devices, plans.JOBS["sample"])
  layer = plan["collectives"]["a_layer"]
  assert layer["all-to-all"]["count"] >= 4
  assert "reduce-scatter" not in layer
  sizes = costs.sizes_of(step.make_goku(**found.model).config)
  one = costs.flow_flops((8,), (64,), **sizes)
  # Four clips, each with and without its caption, by two steps.
  assert plan["model_flops"] == pytest.approx(4 * 2 * 2 * one)


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_autoencoder_is_planned():
  found = config.read_config(f"{runs.ROOT}/configs/vae.py:variant=debug")
  plan = plans.make_plan(found, "v5e:2x4", job="vae")
  assert 0 < plan["hbm_share"] < 0.1
  assert plan["hbm_seconds"] > 0
  with pytest.raises(UserError, match=r"--job=vae needs data\.videos"):
    plans.make_plan(runs.read_config("vae"), "v5e:2x4", job="vae")


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_ways_that_fit_are_found():
  found = searches.search(read("debug"), "v5e:2x4", 1, count=2)
  assert len(found["best"]) == 2
  assert found["ways"] > 10
  assert all(0 < way["hbm_share"] < 0.9 for way in found["best"])


def test_ways_multiply_to_the_chips_and_split_what_they_must():
  found = searches.ways(read("variant=8b-hd128,res=720p"), 256)
  assert len(set(found)) == len(found) > 50
  for way in found:
    assert way.fsdp * way.sequence * way.tensor == 256
    assert 24 % way.tensor == 0
    assert (24 // way.tensor) % (way.sequence // way.ring) == 0
    assert 16 % (way.fsdp * way.micro_batches) == 0


def test_ways_of_several_slices_share_the_packs_among_all():
  found = searches.ways(read("variant=8b,res=720p"), 64, 4)
  assert found
  assert all(16 % (4 * way.fsdp * way.micro_batches) == 0 for way in found)


def test_the_mesh_of_a_slice_is_taken_unless_another_is_set():
  choose = lambda **more: plans.choose(
    read("variant=8b,res=720p", **more), "v5p:8x8x4", 2
  )
  assert choose().mesh.to_dict() == dict(
    replica=2, fsdp=16, sequence=16, tensor=1
  )
  assert choose().model.remat == "keep_attention"
  found = choose(mesh__fsdp=8)
  assert (found.mesh.fsdp, found.mesh.sequence) == (8, 1)
  assert found.model.remat == "full"


def test_a_program_is_as_long_whatever_the_depth():
  lines = {}
  for depth in (2, 8):
    found = read("debug", model__depth=depth)
    lowered = step.lower_step(found, jax.devices()).lowered
    lines[depth] = lowered.as_text().count("\n")
  assert lines[2] == lines[8]


def test_a_topology_that_is_none_names_the_known():
  for name in ("v7:4x4", "v5p-256", "v5p", "v5p:0"):
    with pytest.raises(UserError, match=r"name one as v4:4x4x4, v5e:16x16"):
      topology.find_devices(name)


def test_a_mesh_that_does_not_make_the_slice_is_refused():
  devices = topology.find_devices("v5e:2x4")
  with pytest.raises(UserError, match="does not make 8 devices"):
    step.lower_step(read("debug", mesh__fsdp=3), devices)
  with pytest.raises(UserError, match=r"tensor=4 does not divide .* 2 heads"):
    step.lower_step(read("debug", mesh__tensor=4), devices)


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_step_that_does_not_fit_says_by_how_much_and_what_would():
  found = read(
    "variant=2b,res=288p",
    attention__ring=1,
    model__depth=2,
    model__remat="none",
    data__num_packs=64,
    data__pack__tokens=131_072,
  )
  with pytest.raises(UserError) as refusal:
    plans.make_plan(found, "v5e:2x2")
  says = str(refusal.value)
  assert "of a device's 15.75G" in says
  assert "set --config.model.remat=full or --config.micro_batches=2" in says


def test_work_is_the_formula_of_costs():
  found = read("variant=8b,res=720p")
  sizes = dict(
    width=3072, depth=40, mlp_ratio=4, patch_width=64, text_width=2048
  )
  work = report.work_of(found, sizes)
  one = costs.training_flops((219_600,), (512,), **sizes)
  assert work.model == 16 * one
  assert work.attention / work.model == pytest.approx(0.91, abs=0.01)
  assert work.blocks == 215 * 108  # 1,024 queries by 2,048 keys


def test_keeping_attention_raises_the_ceiling():
  sizes = dict(replica=1, fsdp=16, sequence=16, tensor=1)
  mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  schedule = dict(forward=10_819, dq=11_700, dkv=16_628)
  chip = costs.find_chip("TPU v5")
  found = {}
  for remat in ("full", "keep_attention", "offload"):
    arg = read("variant=8b,res=720p", model__remat=remat)
    model = step.make_goku(**arg.model)
    found[remat] = report.compute(arg, model, mesh, chip, schedule)
  assert found["keep_attention"]["mfu_ceiling"] == pytest.approx(
    0.327, abs=0.01
  )
  ratio = found["full"]["mfu_ceiling"] / found["keep_attention"]["mfu_ceiling"]
  assert 0.7 < ratio < 0.85


def test_traffic_of_a_ring_is_the_scaling_books():
  chip = costs.Chip(1.0, link_speed=50e9)
  one = program.Collective("all-gather", 10**9, 4, 1, 16, "bf16", (), "")
  seconds = lambda kind: report.traffic_seconds(one._replace(kind=kind), chip)
  assert seconds("all-gather") == pytest.approx(4 * 0.01)
  assert seconds("all-reduce") == pytest.approx(4 * 0.02)
  # Of a part of a sixteenth: in all sixteen times as much, of it a quarter.
  assert seconds("all-to-all") == pytest.approx(4 * 0.04)


def test_memory_passes_what_layers_make_and_the_state_twice():
  chip = costs.Chip(1.0, hbm_speed=100.0)
  array = program.Array("bf16", (5, 10), "fusion", "", 3, 1)
  part = array._replace(op="dynamic-update-slice")
  arrays = [array, array, part]
  assert report.hbm_seconds(arrays, 200, chip) == 2 * (600 + 200) / 100


@pytest.mark.tpu
@pytest.mark.slow
def test_wider_heads_take_no_more_bundles():
  narrow, wide = (bundles.count("v5p:2x2x1", k, 512, 512) for k in (64, 128))
  assert narrow.keys() == {"forward", "dq", "dkv"}
  for name, count in narrow.items():
    assert count > 512 * 512 * 64 * 4 / 131_072  # two products at the least
    assert wide[name] < 1.1 * count
