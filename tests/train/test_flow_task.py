"""What the flow model asks of its data."""

import types

import numpy as np
import pytest

from goku_jax.data import schema
from goku_jax.models import goku
from goku_jax.train import flow_task
from goku_jax.typing import UserError
from tests import runs


def source_of(num_classes=1, clips=(), **sample):
  """Data of some classes and clips, each with arrays of these names."""
  return types.SimpleNamespace(
    null_text=schema.NO_TEXT,
    num_classes=num_classes,
    is_video=np.array(clips, bool),
    read=lambda index, visit: sample,
  )


@pytest.mark.parametrize(
  ("have", "message"),
  [(1, "the data has no classes"), (20, "=10 and the data has 20 classes")],
)
def test_a_model_has_no_fewer_classes_than_its_data(have, message):
  model = goku.make_goku("debug", num_classes=10)
  with pytest.raises(UserError, match=message):
    flow_task._check_conditions(model, source_of(have))
  flow_task._check_conditions(model, source_of(10))


def given_of(**changes):
  """The debug config, told of given frames."""
  config = runs.read_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.conditioned = True
    config.data.given = dict(
      first=0.5, first_last=0.0, run=0.0, noise_mean=-3.0, noise_std=0.0
    )
    config.data.given.update(changes)
  return config


def test_ends_that_the_latents_lack_are_asked_for():
  model = goku.make_goku("debug", conditioned=True)
  old = source_of(clips=[False, True], first=0)
  assert flow_task._read_given(given_of(), model, old)
  with pytest.raises(UserError, match="run prepare again"):
    flow_task._read_given(given_of(first_last=0.2), model, old)
  new = source_of(clips=[False, True], first=0, last=0)
  assert flow_task._read_given(given_of(first_last=0.2), model, new)


def test_a_model_and_its_data_are_told_of_given_frames_together():
  model = goku.make_goku("debug")
  assert flow_task._read_given(runs.read_config(), model, source_of()) is None
  with pytest.raises(UserError, match=r"model\.conditioned=False and data\.g"):
    flow_task._read_given(given_of(), model, source_of())
