"""A checkpoint comes back bit for bit, on any mesh, or not at all."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from goku_jax import checkpoint, checksums, manifest
from goku_jax.typing import UserError

AUTO = jax.sharding.AxisType.Auto


def make_params(seed=0):
  """Small trees with what is awkward: bfloat16, scalars, bits of NaN."""
  rng = np.random.default_rng(seed)
  kernel = rng.standard_normal((8, 16)).astype(np.float32)
  kernel[0, 0] = np.nan
  return {
    "block": {
      "kernel": jnp.asarray(kernel),
      "half": jnp.asarray(kernel, jnp.bfloat16),
    },
    "mask": np.array([True, False]),
  }


def make_trees(seed=0):
  params = make_params(seed)
  weights = {"kernel": params["block"]["kernel"], "half": jnp.ones(3)}
  opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  return {
    "params": params,
    "opt": opt.init(weights),
    "count": jnp.int32(seed),
    "host_count": np.int64(2**40 + seed),
  }


def abstract_of(trees, sharding=None):
  def abstract(leaf):
    where = getattr(leaf, "sharding", None) and (sharding or leaf.sharding)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(abstract, trees)


def assert_same_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(folder, steps, keep=3):
  config = {"seed": 0, "size": (8, 16)}
  with checkpoint.Checkpointer(
    folder, keep=keep, config=config
  ) as checkpointer:
    for step in steps:
      checkpointer.save(step, make_trees(step), {"step": step})


def make_mesh(*shape):
  names = ("a", "b")[: len(shape)]
  count = np.prod(shape)
  return jax.make_mesh(
    shape, names, axis_types=(AUTO,) * len(shape), devices=jax.devices()[:count]
  )


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
  folder = tmp_path_factory.mktemp("three") / "checkpoints"
  save_steps(folder, (10, 20, 30))
  return folder


@pytest.fixture
def steps(three_steps, tmp_path):
  """Steps 10, 20 and 30, to be damaged."""
  return shutil.copytree(three_steps, tmp_path / "checkpoints")


def files_of(path):
  return sorted(p for p in path.rglob("*") if p.is_file())


def test_newest_step_comes_back_bit_for_bit(three_steps):
  want = make_trees(30)
  step, trees, position = checkpoint.restore(three_steps, abstract_of(want))
  assert (step, position) == (30, {"step": 30})
  assert_same_bits(trees, want)
  assert trees["params"]["block"]["half"].dtype == ml_dtypes.bfloat16
  assert isinstance(trees["opt"][1][0], optax.ScaleByAdamState)


def test_a_step_asked_for_comes_back(three_steps):
  abstract = abstract_of(make_trees())
  step, trees, _ = checkpoint.restore(three_steps, abstract, step=10)
  assert step == 10
  assert_same_bits(trees, make_trees(10))


def test_an_empty_or_absent_folder_holds_nothing(tmp_path):
  assert checkpoint.restore(tmp_path, {}) is None
  assert checkpoint.restore(tmp_path / "none", {}) is None
  assert checkpoint.whole_steps(tmp_path / "none") == []


@pytest.mark.parametrize("shape", [(1,), (2,), (8,), (2, 4)])
def test_arrays_move_to_another_mesh(tmp_path, shape):
  weights = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
  spread = jax.NamedSharding(make_mesh(4, 2), jax.P("b", "a"))
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    trees = {"params": {"w": jax.device_put(weights, spread)}}
    checkpointer.save(1, trees, {})
  target = jax.NamedSharding(make_mesh(*shape), jax.P(("a", "b")[: len(shape)]))
  _, got, _ = checkpoint.restore(tmp_path, abstract_of(trees, target))
  assert got["params"]["w"].sharding == target
  np.testing.assert_array_equal(got["params"]["w"], weights)


def test_arrays_may_be_donated_and_overwritten_after_save(tmp_path):
  spoil = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  sharding = jax.NamedSharding(make_mesh(8), jax.P("a"))
  want = np.random.default_rng(0).random((800, 1000), np.float32)
  device, host = jax.device_put(want, sharding), want.copy()
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, {"params": {"device": device, "host": host}}, {})
    spoil(device).block_until_ready()
    host[:] = -1
  abstract = {"params": {"device": jax.ShapeDtypeStruct(want.shape, "float32")}}
  abstract["params"]["host"] = abstract["params"]["device"]
  _, trees, _ = checkpoint.restore(tmp_path, abstract)
  np.testing.assert_array_equal(trees["params"]["device"], want)
  np.testing.assert_array_equal(trees["params"]["host"], want)


def test_one_tree_alone_needs_the_files_of_no_other(steps):
  shutil.rmtree(steps / "30" / "opt")
  params = make_params(30)
  step, trees, _ = checkpoint.restore(steps, abstract_of({"params": params}))
  assert step == 30
  assert_same_bits(trees, {"params": params})


def test_a_leaf_without_sharding_comes_as_numpy(three_steps):
  params = make_params(30)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), {"params": params}
  )
  _, trees, _ = checkpoint.restore(three_steps, abstract)
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(trees))
  assert_same_bits(trees["params"], params)


def test_the_newest_are_kept_and_leftovers_removed(steps):
  shutil.copytree(steps / "20", steps / "25.orbax-checkpoint-tmp")
  (steps / "25.orbax-checkpoint-tmp" / "manifest.json").unlink()
  (steps / "notes").mkdir()
  save_steps(steps, (40,), keep=2)
  assert {path.name for path in steps.iterdir()} == {"30", "40", "notes"}


def test_a_step_behind_newer_ones_is_kept(steps):
  save_steps(steps, (15,), keep=1)
  assert checkpoint.whole_steps(steps) == [15, 30]


def test_a_whole_step_is_never_replaced(steps):
  with (
    checkpoint.Checkpointer(steps) as checkpointer,
    pytest.raises(RuntimeError, match=r"whole already"),
  ):
    checkpointer.save(30, make_trees(), {})
  assert checkpoint.whole_steps(steps) == [10, 20, 30]


@pytest.mark.parametrize("damage", ["no manifest", "flipped", "unfinished"])
def test_a_step_that_is_not_whole_is_replaced(steps, damage):
  if damage == "no manifest":
    (steps / "30" / "manifest.json").unlink()
  elif damage == "flipped":
    flip(steps / "30" / "params" / "manifest.ocdbt")
  else:
    (steps / "30").rename(steps / "30.orbax-checkpoint-tmp")
  save_steps(steps, (30,))
  assert checkpoint.restore(steps, abstract_of(make_trees()))[0] == 30


def flip(path, place=0.5):
  data = bytearray(path.read_bytes())
  data[int(place * (len(data) - 1))] ^= 0x40
  path.write_bytes(data)


def restore_with_log(folder, caplog):
  caplog.clear()
  with caplog.at_level(logging.WARNING, logger="root"):
    result = checkpoint.restore(folder, abstract_of(make_trees()))
  lines = [r.getMessage() for r in caplog.records if r.name == "root"]
  return result, lines


def test_one_flipped_byte_in_any_file_is_found_and_named(steps, caplog):
  files = files_of(steps / "30")
  assert len(files) > 20
  for index, path in enumerate(files):
    data = path.read_bytes()
    flip(path, index / len(files))
    (step, trees, _), lines = restore_with_log(steps, caplog)
    name = path.relative_to(steps / "30").as_posix()
    assert step == 20, name
    assert len(lines) == 1
    assert "checkpoints/30 is not whole" in lines[0]
    assert f"({name} differs from its" in lines[0]
    assert lines[0].endswith("step 20 is used instead")
    path.write_bytes(data)
  assert_same_bits(trees, make_trees(20))
  assert restore_with_log(steps, caplog)[0][0] == 30  # put back, it is whole


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_found(steps):
  files = files_of(steps / "30")
  assert {"manifest.json", "_CHECKPOINT_METADATA"} <= {p.name for p in files}
  rng = np.random.default_rng(0)
  abstract = abstract_of(make_trees())
  sizes = np.array([path.stat().st_size for path in files])
  # Half of the places by size, half by file: most files are small.
  picked = rng.choice(len(files), 50, p=sizes / sizes.sum()).tolist()
  for i in [*picked, *rng.choice(len(files), 50).tolist()]:
    path, data = files[i], bytearray(files[i].read_bytes())
    if not data:
      continue
    whole = bytes(data)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    name = path.relative_to(steps / "30").as_posix()
    with pytest.raises(UserError, match=f"30 is not whole .{name} "):
      checkpoint.restore(steps, abstract, fall_back=False)
    path.write_bytes(whole)
  assert checkpoint.restore(steps, abstract, fall_back=False)[0] == 30


@pytest.mark.parametrize("name", ["data", "manifest.json"])
def test_a_file_cut_short_or_missing_sends_back_a_step(steps, caplog, name):
  if name == "data":
    path = max(
      files_of(steps / "30" / "params"), key=lambda p: p.stat().st_size
    )
  else:
    path = steps / "30" / name
  path.write_bytes(path.read_bytes()[:-1])
  result, lines = restore_with_log(steps, caplog)
  assert result[0] == 20
  assert path.name in lines[0]
  path.unlink()
  result, lines = restore_with_log(steps, caplog)
  assert result[0] == 20
  assert path.name in lines[0]
  assert checkpoint.whole_steps(steps) == [10, 20]


def test_a_damaged_step_asked_for_by_number_is_refused(steps):
  flip(steps / "20" / "opt" / "_METADATA")
  abstract = abstract_of(make_trees())
  with pytest.raises(UserError, match=r"20 is not whole \(opt/_METADATA"):
    checkpoint.restore(steps, abstract, step=20)
  with pytest.raises(UserError, match=r"99 is not whole .* \[10, 20, 30\]$"):
    checkpoint.restore(steps, abstract, step=99)


def test_a_step_removed_while_it_is_read_is_one_line(steps, monkeypatch):
  """Retention may come between the verification of files and their reading."""

  def check_and_remove(*args):
    check_arrays(*args)
    shutil.rmtree(steps / "20", ignore_errors=True)

  check_arrays = checkpoint.check_arrays
  monkeypatch.setattr(checkpoint, "check_arrays", check_and_remove)
  with pytest.raises(UserError, match="20 was removed while it was read"):
    checkpoint.restore(steps, abstract_of(make_trees()), step=20)


def test_a_step_that_is_committed_while_it_is_looked_at_is_no_damage(
  steps, monkeypatch
):
  """Its manifest was missed, and is there a moment later."""
  for step in checkpoint.whole_steps(steps)[:-1]:
    shutil.rmtree(steps / str(step))
  (newest,) = checkpoint.whole_steps(steps)
  path = steps / str(newest) / manifest.NAME
  text, read = path.read_bytes(), manifest.read
  path.unlink()

  def read_too_early(folder):
    try:
      return read(folder)
    finally:
      path.write_bytes(text)

  monkeypatch.setattr(manifest, "read", read_too_early)
  abstract = {"params": abstract_of(make_params())}
  assert checkpoint.restore(steps, abstract) is None
  assert checkpoint.restore(steps, abstract)[0] == newest


def flip_data(path, name):
  """Flips a byte of the largest file of a tree."""
  largest = max(files_of(path / name), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)


def test_what_was_wrong_before_it_was_written_is_found(tmp_path, caplog):
  # The digests of files are right, of wrong bytes: only checksums tell.
  noise = np.random.default_rng(0).random((100, 100), np.float32)
  trees = {"params": {"a": jnp.asarray(noise)}}
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    for step in (1, 2):
      checkpointer.save(step, trees, {})
  flip_data(tmp_path / "2", "params")
  write_manifest_anew(tmp_path / "2")
  abstract = abstract_of(trees)
  step, got, _ = checkpoint.restore(tmp_path, abstract)
  assert step == 1
  assert_same_bits(got, trees)
  assert "2 is not whole (params.a differs from its checksum)" in caplog.text
  step, got, _ = checkpoint.restore(tmp_path, abstract, verify="sizes")
  assert step == 2
  assert (np.asarray(got["params"]["a"]) != noise).sum() == 1
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.went_on_from = 1  # and so comes to 2 again
    checkpointer.save(2, trees, {})
  assert checkpoint.restore(tmp_path, abstract)[0] == 2


def test_steps_before_another_are_preferred_if_asked(steps):
  abstract = abstract_of(make_trees())
  for before, step in ((31, 30), (30, 20), (11, 10), (10, 30)):
    assert checkpoint.restore(steps, abstract, before=before)[0] == step


# Orbax leaves a coroutine behind when a restore fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sizes_alone_are_compared_if_asked(steps, caplog):
  # Of so small a tree the largest file has Orbax's own checksum; see above for
  # what it does not find.
  flip_data(steps / "30", "params")
  trees = abstract_of({"params": make_params(30)})
  assert checkpoint.restore(steps, trees, verify="sizes")[0] == 20
  assert "30 is not whole (DATA_LOSS: Error opening" in caplog.text
  with pytest.raises(UserError, match="verify='all' is none of full, sizes"):
    checkpoint.restore(steps, trees, verify="all")


def test_the_step_before_a_damaged_one_is_used_if_allowed(steps):
  flip_data(steps / "30", "params")
  abstract = abstract_of(make_trees())
  message = r"30 is not whole \(params/.*\); whole steps: \[10, 20\]"
  with pytest.raises(UserError, match=message):
    checkpoint.restore(steps, abstract, fall_back=False)
  shutil.rmtree(steps / "30")
  (steps / "40").mkdir()  # never committed, so nothing is passed over
  assert checkpoint.restore(steps, abstract, fall_back=False)[0] == 20


def test_every_k_steps_and_the_best_are_kept(tmp_path):
  best = iter([None, 1, 1, 4, 4, None])
  with checkpoint.Checkpointer(
    tmp_path, keep=1, keep_every=3, best=lambda steps: next(best)
  ) as checkpointer:
    kept = []
    for step in range(1, 7):
      checkpointer.save(step, {"params": jnp.ones(3)}, {})
      checkpointer.wait()
      kept.append(checkpoint.whole_steps(tmp_path))
  assert kept == [[1], [1, 2], [1, 3], [3, 4], [3, 4, 5], [3, 6]]


def test_only_damaged_steps_are_an_error_and_never_a_fresh_start(steps):
  for step in (10, 20, 30):
    flip(steps / str(step) / "params" / "manifest.ocdbt")
  with pytest.raises(UserError, match=r"params/manifest\.ocdbt .*: none$"):
    checkpoint.restore(steps, abstract_of(make_trees()))


def test_a_first_save_cut_off_is_a_fresh_start_and_said_so(steps, caplog):
  for step in (10, 20):
    shutil.rmtree(steps / str(step))
  (steps / "30" / "manifest.json").unlink()
  result, lines = restore_with_log(steps, caplog)
  assert result is None
  assert "never finished" in lines[0]


def write_manifest_anew(path, **changes):
  """Of the files as they are now."""
  record = {**manifest.read(path), **changes}
  del record["digest"], record["files"]
  (path / "manifest.json").unlink()
  manifest.write(path, record)


def test_a_newer_layout_is_refused(steps):
  write_manifest_anew(steps / "30", layout=checkpoint.LAYOUT + 1)
  with pytest.raises(
    UserError, match=f"has the layout {checkpoint.LAYOUT + 1}"
  ):
    checkpoint.restore(steps, abstract_of(make_trees()))


def test_another_model_is_an_error_and_never_a_fresh_start(three_steps):
  abstract = abstract_of(make_trees())
  abstract["params"]["block"]["kernel"] = jax.ShapeDtypeStruct((8, 17), "f4")
  with pytest.raises(UserError, match=r"params\.block\.kernel .*\[8, 17\]"):
    checkpoint.restore(three_steps, abstract)


@pytest.mark.parametrize(
  ("step", "trees", "position"),
  [
    (-1, {"a": np.ones(1)}, {}),
    (1, {"a": {}}, {}),
    (1, {"a": "text"}, {}),
    (1, {"../a": np.ones(1)}, {}),
    (1, {"a": {"b.c": np.ones(1), "b": {"c": np.ones(1)}}}, {}),
    (1, {"a": np.ones(1)}, {"x": float("nan")}),
    (1, {"a": np.ones(1)}, {"x": (1, 2)}),
  ],
)
def test_what_would_not_come_back_is_not_saved(tmp_path, step, trees, position):
  with (
    checkpoint.Checkpointer(tmp_path) as checkpointer,
    pytest.raises(ValueError, match=r"step|names|array|path|JSON"),
  ):
    checkpointer.save(step, trees, position)
  assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_what_is_inside(three_steps):
  record = json.loads((three_steps / "30" / "manifest.json").read_text())
  assert record["layout"] == checkpoint.LAYOUT
  half = make_params(30)["block"]["half"]
  assert record["trees"]["params"]["block.half"] == {
    "shape": [8, 16],
    "dtype": "bfloat16",
    "checksum": int(checksums.checksum(half)),
  }
  assert record["config"] == {"seed": 0, "size": [8, 16]}
  assert "0.mu.kernel" not in record["trees"]["params"]
  assert record["trees"]["opt"]["1.0.mu.kernel"]["dtype"] == "float32"
  assert set(record["versions"]) == {"goku_jax", "jax", "orbax"}
  names = {
    p.relative_to(three_steps / "30") for p in files_of(three_steps / "30")
  }
  assert {str(name) for name in names} == {*record["files"], "manifest.json"}


def command(capsys, *arguments):
  """Status and lines of `python -m goku_jax.checkpoint`."""
  status = checkpoint.main([str(argument) for argument in arguments])
  out, err = capsys.readouterr()
  return status, (out + err).splitlines()


def test_steps_are_listed_and_verified_by_hand(steps, capsys):
  status, lines = command(capsys, "list", steps.parent)
  assert status == 0
  assert [line.split(":")[0] for line in lines] == [
    "step 10",
    "step 20",
    "step 30",
  ]
  assert "whole, by sizes" in lines[0]
  assert "3 of params" in lines[0]
  status, lines = command(capsys, "verify", steps)
  assert status == 0
  assert all("whole, every byte" in line for line in lines)


def test_all_that_differs_is_named(steps, capsys):
  for name in ("params/manifest.ocdbt", "opt/_METADATA"):
    flip(steps / "20" / name)
  (steps / "10" / "manifest.json").unlink()
  assert command(capsys, "list", steps)[0] == 1  # for step 10
  status, lines = command(capsys, "verify", steps)
  assert status == 1
  assert lines[0] == "step 10: not whole (manifest.json is missing)"
  assert sorted(lines[1:3]) == [
    "step 20: not whole (opt/_METADATA differs from its digest)",
    "step 20: not whole (params/manifest.ocdbt differs from its digest)",
  ]
  assert lines[3].startswith("step 30: whole")
  assert command(capsys, "verify", steps, "--step=30")[0] == 0


def test_the_arrays_of_a_step_are_shown(steps, tmp_path, capsys):
  (steps / "30" / "manifest.json").unlink()
  status, lines = command(capsys, "show", steps)
  assert status == 0
  assert lines[0] == 'step 20, position {"step": 20}'
  assert "params.block.half  bfloat16 [8, 16]" in lines
  status, lines = command(capsys, "show", steps, "--step=30")
  assert (status, lines) == (2, [f"{steps}: step 30 has no whole manifest"])
  (tmp_path / "empty").mkdir()
  assert command(capsys, "list", tmp_path / "empty")[0] == 2
