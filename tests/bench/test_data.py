"""The bench of loading: figures of a real loader and a real step."""

import pytest

from goku_jax.bench import __main__ as bench
from goku_jax.bench import data
from goku_jax.typing import UserError
from tests import runs


@pytest.mark.slow
def test_the_loader_and_the_step_are_timed_apart():
  config = runs.read_config()
  found = data.compare(config, rounds=1)
  packs = config.data.num_packs
  for name, seconds in (
    ("packs_per_second", found["loader_seconds"]),
    ("packs_per_second_of_the_step", found["step_seconds"]),
  ):
    assert found[name] == pytest.approx(packs / seconds)
  ratio = found["loader_seconds"] / found["step_seconds"]
  assert found["loader_ratio"] == pytest.approx(ratio)


def test_a_config_of_another_stage_is_refused():
  ask = lambda suite, config: bench.main(
    suite, 1, 17, 256, 128, "float32", [], config=config
  )
  with pytest.raises(UserError, match="is not of stage=flow"):
    ask("data", runs.read_config("vae"))
  with pytest.raises(UserError, match="--suite=conv takes no --config"):
    ask("conv", runs.read_config())
