"""Arms of a part differ in what is compared, and in nothing else."""

import itertools

import pytest

from goku_jax.ablations import arms, study
from goku_jax.config import flatten, read_config
from goku_jax.typing import UserError
from tests import runs


@pytest.fixture(scope="module")
def config():
  return read_config(f"{runs.ROOT}/configs/ablations.py:debug")


COMPARED = {
  "images": "loss.",
  "clips": "loss.",
  "joint": "data.image_share",
  "sizes": "model.",
  "positions": "model.positions",
}


@pytest.mark.parametrize("part", arms.PARTS)
def test_arms_differ_in_what_is_compared_alone(config, part):
  found = [
    flatten(study.arm_config(config, arm, 0).to_dict())
    for arm in arms.PARTS[part](part, config.steps[part])
    if arm.is_judged
  ]
  assert len(found) > 1
  for one, other in itertools.pairwise(found):
    differ = {k for k in one | other if one.get(k) != other.get(k)}
    assert differ
    assert all(k.startswith(COMPARED[part]) for k in differ), differ


def test_what_others_begin_at_comes_before_them(config):
  found = arms.read(config)
  for arm in found:
    if arm.begins_at:
      assert found.index(arm.begins_at) < found.index(arm)
      assert arms.checkpoints(arm, 2) == [0, 2, 4]
    else:
      assert arms.checkpoints(arm, 2) == [2, 4]


def test_solvers_of_two_calls_take_half_the_steps(config):
  for arm in arms.PARTS["images"]("images", 4):
    asked = study.questions(config, arm)
    assert len(asked) == len(set(asked))
    usual = "ddim" if "DDPM" in arm.name else "euler"
    assert study.Question(2, usual, 2) in asked
    other = "ancestral" if "DDPM" in arm.name else "heun"
    calls = [q.calls for q in asked if q.solver == other]
    assert calls == ([1, 2] if other == "ancestral" else [2])


def test_a_part_that_there_is_not_is_refused(config):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.parts = "images,clip"
  with pytest.raises(UserError, match="'clip' is none; did you mean clips"):
    arms.read(config)


def test_images_fill_a_pack(config):
  """Captions, which a model of classes does not read, stand in no way."""
  pack = config.images.data.pack
  assert pack.segments * 16 == pack.tokens
  assert pack.segments * config.images.data.max_text <= pack.text


def test_times_are_those_that_each_arm_was_published_with(config):
  for arm in arms.PARTS["images"]("images", 4):
    time = study.arm_config(config, arm, 0).loss.time
    assert time.shift == 1.0
    assert time.shift_tokens == 0
    density = "logit_normal" if "logit" in arm.name else "uniform"
    assert {k for k, weight in time.weights.items() if weight} == {density}


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"checkpoints": 3}, "steps.clips=4: set a multiple of checkpoints=3"),
    ({"seeds": 0}, "seeds=0: set 1 or more"),
  ],
)
def test_a_study_that_cannot_be_is_refused(config, changes, told, tmp_path):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.update(changes)
  with pytest.raises(UserError, match=told):
    study.run(config, tmp_path)


def test_the_autoencoder_learns_from_the_smallest_clips(config):
  assert config.vae.data.digits.canvas == config.sides.small
  assert config.vae.data.digits.num_frames == config.num_frames.small
