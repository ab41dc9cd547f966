"""The bench of checkpoints runs, and its figures hold together."""

from goku_jax.bench import saving


def test_everything_is_timed(tmp_path):
  found = saving.compare(rounds=1, gib=0.01, folder=tmp_path)
  seconds = found["seconds"]
  assert all(took > 0 for took in seconds.values())
  assert seconds["save_blocks"] <= seconds["save"]
  assert found["save_over_plain_files"] == (
    seconds["save"] / seconds["plain_write"]
  )
  assert found["restore_memory_over_state"] > 0
  assert not list(tmp_path.iterdir())


def test_the_state_is_as_large_as_asked():
  (tree,) = saving.make_state(0.01).values()
  size = sum(x.nbytes for x in tree.values())
  assert abs(size / 2**30 / 0.01 - 1) < 0.05
  assert all(x.dtype == "float32" for x in tree.values())
