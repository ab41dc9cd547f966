"""A sample is its own, whatever it is packed with and wherever it is drawn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.data import packing, patches
from goku_jax.flow import noise
from goku_jax.flow.process import FLOW, make_process
from goku_jax.models import goku
from goku_jax.parallel import mesh as meshes
from goku_jax.sample.codec import Codec
from goku_jax.sample.restore import init_params, make_model
from goku_jax.sample.sampler import sample_latents
from tests import runs

CAPTIONS = [
  "the digit five moves left",
  "a picture of the digit one",
  "the digit eight moves down right quickly",
]
SHAPES = [(5, 16, 16, 3), (1, 16, 16, 3), (5, 16, 16, 3)]
SETTINGS = dict(
  seed=0,
  num_steps=2,
  guidance_scale=3.0,
  max_text=32,
  solve=FLOW.solvers["euler"],
)
WIDE = packing.Capacity(200, 80, 8)  # all three in one pack


@pytest.fixture(scope="module")
def model():
  return runs.flow_model()


@pytest.fixture(scope="module")
def drawn(model):
  return draw(model)


def draw(model, which=(0, 1, 2), capacity=WIDE, **more):
  captions, shapes = CAPTIONS, SHAPES
  return sample_latents(
    *model,
    [captions[i] for i in which],
    [shapes[i] for i in which],
    capacity=capacity,
    indices=list(which),
    **SETTINGS | more,
  )


def test_samples_have_the_shapes_asked_for(drawn):
  assert [x.shape for x in drawn] == SHAPES
  chex.assert_tree_all_finite(drawn)


def test_other_pack_mates_change_no_sample(model, drawn):
  alone = [draw(model, [i])[0] for i in range(3)]
  turned = draw(model, [2, 1, 0])[::-1]
  apart = draw(model, capacity=packing.Capacity(80, 40, 1))
  for others in (alone, turned, apart):
    for one, other in zip(drawn, others, strict=True):
      np.testing.assert_allclose(one, other, atol=1e-5)


def test_eight_devices_draw_what_one_does(model, drawn):
  mesh = meshes.make_mesh(1, 8)
  net, params = model
  with meshes.use(mesh):
    copies = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shared = draw((net, jax.device_put(params, copies)))
  for one, other in zip(drawn, shared, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_seed_and_the_caption_decide(model, drawn):
  again = draw(model)
  for one, two in zip(drawn, again, strict=True):
    np.testing.assert_array_equal(one, two)
  assert np.abs(draw(model, seed=1)[0] - drawn[0]).max() > 0.1
  others = sample_latents(
    *model, ["the digit two moves up"] * 3, SHAPES, capacity=WIDE, **SETTINGS
  )
  assert np.abs(others[0] - drawn[0]).max() > 1e-3


def test_a_class_without_text_steers_unless_guidance_is_zero():
  model = goku.make_goku(
    "debug", num_classes=10, latent_channels=3, patch_size=runs.PATCH
  )
  init = jax.jit(functools.partial(init_params, model))
  params = runs.stirred(init(jax.random.key(0)))
  draw = lambda labels, scale: sample_latents(
    model,
    params,
    [""] * 3,
    SHAPES,
    labels=labels,
    capacity=WIDE,
    **SETTINGS | dict(guidance_scale=scale),
  )
  for scale, differ in ((1.0, True), (3.0, True), (0.0, False)):
    one, two = draw([5, 5, 5], scale), draw([5, 5, 8], scale)
    assert all(map(np.array_equal, one[:2], two[:2]))
    assert np.array_equal(one[2], two[2]) != differ
  for one, two in zip(draw(None, 1.0), draw([1, 2, 3], 0.0), strict=True):
    np.testing.assert_allclose(one, two, atol=1e-5)  # no label: dropped


def test_one_branch_without_guidance_draws_what_two_do(model):
  one, two = (
    draw(model, guidance_scale=1.0),
    draw(model, guidance_scale=1.00001),
  )
  for a, b in zip(one, two, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_model_in_bfloat16_draws_nearly_the_same(model, drawn):
  half = make_model(runs.read_config(model__dtype="bfloat16"), Codec())
  for one, two in zip(drawn, draw((half, model[1])), strict=True):
    assert two.dtype == np.float32
    error = np.linalg.norm(one - two) / np.linalg.norm(one)
    assert 0 < error < 0.05


def test_equal_captions_have_noise_of_their_own(model):
  one, two = sample_latents(
    *model, CAPTIONS[:1] * 2, SHAPES[:1] * 2, capacity=WIDE, **SETTINGS
  )
  assert np.abs(one - two).max() > 0.1


def test_a_sample_starts_from_other_noise_than_training(model):
  net, params = model
  still = jax.tree.map(jnp.zeros_like, params)  # no velocity
  (drawn,) = sample_latents(
    net, still, CAPTIONS[:1], SHAPES[:1], capacity=WIDE, **SETTINGS
  )
  tokens = patches.patchify(drawn, runs.PATCH)
  grid = patches.grid_positions(patches.token_grid(drawn.shape, runs.PATCH))
  first = jnp.zeros((1, 1), int)

  def of(purpose):
    keys = noise.sample_keys(jax.random.key(0), purpose, first, first)
    ids = jnp.ones((1, len(tokens)), int)
    return noise.grid_normal(
      keys, ids, jnp.asarray(grid)[None], tokens.shape[1]
    )[0]

  np.testing.assert_allclose(tokens, of(noise.START), atol=1e-6)
  training = np.asarray(of(noise.NOISE))
  assert abs(np.corrcoef(tokens.ravel(), training.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["ddim", "ancestral"])
def test_diffusion_draws_by_identity_too(model, name):
  solve = make_process(objective="ddpm").solvers[name]
  alone = [draw(model, [i], solve=solve)[0] for i in range(3)]
  for one, two in zip(draw(model, solve=solve), alone, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(one).max())


def test_ancestral_sampling_has_fresh_noise(model):
  solvers = make_process(objective="ddpm", prediction="v").solvers
  one, two = (draw(model, solve=solvers[name]) for name in solvers)
  assert np.abs(one[0] - two[0]).max() > 0.1
