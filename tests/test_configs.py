"""Every experiment builds, locks, prints as JSON, and makes its model."""

import json

import jax
import pytest

from goku_jax import config, files
from goku_jax.models import vae
from goku_jax.sample.codec import Codec
from goku_jax.sample.restore import make_model
from goku_jax.typing import UserError
from tests import runs

STAGES = ("flow", "vae", "prepare")
FILES = sorted(
  path
  for path in (runs.ROOT / "configs").glob("*.py")
  if path.name != "common.py"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_has_a_default(path):
  assert config.read_config(str(path)).is_locked


@pytest.mark.parametrize("arg", ["", ",debug"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_builds_locks_and_prints(stage, arg):
  found = config.read_config(
    f"{runs.ROOT}/configs/digits.py:stage={stage}{arg}"
  )
  assert found.is_locked
  assert found.stage == stage
  text = files.to_json(found.to_dict())
  assert config.flatten(json.loads(text)).keys() == (
    config.flatten(found.to_dict()).keys()
  )
  with pytest.raises(AttributeError, match="locked"):
    found.optimizer = 1


@pytest.mark.parametrize("arg", ["", ",debug"])
def test_the_models_of_a_config_can_be_made(arg):
  spec = f"{runs.ROOT}/configs/digits.py:stage="
  flow = make_model(config.read_config(f"{spec}flow{arg}"), Codec(channels=8))
  assert flow.config.latent_channels == 8
  assert vae.make_vae(**config.read_config(f"{spec}vae{arg}").model)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("variant", ["goku", "small", "debug"])
def test_the_autoencoder_of_films_can_be_made(variant, stage):
  spec = f"{runs.ROOT}/configs/vae.py:variant={variant},stage={stage}"
  found = config.read_config(spec)
  stride = vae.make_vae(**found.model).config.stride
  latents = (found.data.videos.num_frames - 1) / stride[0] + 1
  assert latents % (8 if stage == 2 else 1) == 0  # devices share them
  assert stride == ((4, 4, 4) if variant == "debug" else (4, 8, 8))
  assert config.read_config(f"{runs.ROOT}/configs/vae.py:shots").data.shots


@pytest.mark.parametrize("variant", ["8b", "2b-hd128", "digits"])
@pytest.mark.parametrize("stage", ["t2i", "joint", "finetune", "i2v"])
def test_a_stage_of_the_recipe_has_the_model_asked_for(stage, variant):
  spec = f"{runs.ROOT}/configs/{stage}.py:variant={variant}"
  found = config.read_config(spec)
  model = make_model(found, Codec(channels=16))
  assert model.config.conditioned == (stage == "i2v")
  assert (model.text_config is None) == (variant != "digits")
  with pytest.raises(UserError, match="variant='9b' is not one of 8b,"):
    config.read_config(f"{runs.ROOT}/configs/{stage}.py:variant=9b")


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("finetune.py:branch=i2v", "branch='i2v' is not one of t2i, t2v"),
    ("i2v.py:kinds=last", "kinds='last' is not one of first, all"),
    ("imagenet.py:objective=score", "objective='score' is not one of flow"),
    ("imagenet.py:variant=8b", "variant='8b' is not one of 1b, b"),
    ("joint.py:text=clip", "text='clip' is not one of"),
    ("digits.py:stage=vae,given", "given is of stage=flow"),
  ],
)
def test_what_a_stage_does_not_know_is_refused(spec, message):
  with pytest.raises(UserError, match=message):
    config.read_config(f"{runs.ROOT}/configs/{spec}")


@pytest.mark.parametrize("condition", ["text", "class", "both"])
def test_the_flow_model_is_steered_as_the_argument_says(condition):
  spec = f"{runs.ROOT}/configs/digits.py:debug,condition={condition}"
  model = make_model(config.read_config(spec), Codec())
  assert (model.text_config is None) == (condition == "class")
  assert model.config.num_classes == (0 if condition == "text" else 10)


@pytest.mark.parametrize(
  ("arg", "says"),
  [
    ("stage=flo", "stage='flo' is not one of"),
    ("condition=none", "condition='none' is not one of text, class, both"),
    ("stage=vae,condition=class", "not one of text, class, both of stage=flow"),
    ("dbug", "unknown config arg 'dbug'; known: "),
    ("debug=maybe", "'debug' takes true or false, not 'maybe'"),
  ],
)
def test_a_wrong_argument_is_one_line(arg, says):
  with pytest.raises(UserError, match=says) as error:
    config.read_config(f"{runs.ROOT}/configs/digits.py:{arg}")
  assert "\n" not in str(error.value)


def test_the_protocol_of_ucf101_is_that_of_the_tables():
  spec = f"{runs.ROOT}/configs/reconstruction.py:protocol="
  settings = config.read_config(f"{spec}ucf101").evals.reconstruction
  assert (settings.num_frames, settings.size) == (17, (256, 256))
  assert (settings.num_clips, settings.fps) == (0, 0)  # every file, at its rate
  with pytest.raises(UserError, match="protocol='ucf' is not one of"):
    config.read_config(f"{spec}ucf")


@pytest.mark.parametrize(
  ("arg", "says"),
  [
    ("variant=big", "variant='big' is not one of"),
    ("stage=3", "stage=3 is not 1 or 2"),
  ],
)
def test_a_wrong_argument_of_films_is_one_line(arg, says):
  with pytest.raises(UserError, match=says):
    config.read_config(f"{runs.ROOT}/configs/vae.py:{arg}")


def test_debug_runs_are_small():
  task_sizes = (
    runs.read_config().total_steps,
    runs.read_config("vae").total_steps,
  )
  assert max(task_sizes) <= 20
  assert runs.read_config().data.num_packs % len(jax.devices()) == 0
