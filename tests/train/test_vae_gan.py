"""The game against the discriminator: who gets which gradient, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goku_jax.data import digits, pipeline
from goku_jax.models import discriminator, vae
from goku_jax.parallel import batch as batches
from goku_jax.parallel.mesh import make_mesh
from goku_jax.train import vae_gan, vae_loss
from tests import runs

WEIGHT, START, N = 0.5, 3, 5
LOSS = dict(kl_weight=1e-3, l2_weight=1.0)


@pytest.fixture(scope="module")
def batch():
  raw = digits.Digits(num_frames=5, canvas=16, num_samples=64)
  settings = dict(seed=0, first_step=0, num_steps=1)
  batch = pipeline.vae_batches(raw, num_clips=2, num_images=3, **settings)
  return jax.tree.map(jnp.asarray, next(batch))


@pytest.fixture(scope="module")
def through():
  model = vae.make_vae("debug")
  apply_fn = lambda params, *args: model.apply({"params": params}, *args)
  apply_fns = dict.fromkeys(pipeline.KINDS, apply_fn)
  return dict(model=model, apply_fns=apply_fns)


@pytest.fixture(scope="module")
def params(through, batch):
  shape = jnp.zeros(batch["video_BTHWC"].shape)
  init = lambda rng: through["model"].init(rng, shape)["params"]
  return runs.stirred(jax.jit(init)(jax.random.key(0)))


def linear(critic_params, video):
  """A critic whose slope is its parameter."""
  return critic_params["w"] * video.mean((2, 3, 4))  # [B, T] patches


@pytest.fixture(scope="module")
def play(through, batch, params):
  """`gan_grads` at a step, and other settings."""

  @functools.partial(jax.jit, static_argnames=("r1_weight",))
  def fn(w, step, **more):
    return vae_gan.gan_grads(
      params,
      {"w": w},
      batch,
      jax.random.key(0),
      step,
      reconstruct_fn=functools.partial(vae_loss.reconstruct, **through),
      loss_fn=functools.partial(vae_loss.reconstruction_loss, **LOSS),
      critic_fn=linear,
      weight=WEIGHT,
      start_step=START,
      **more,
    )

  return fn


def kernel(grads):
  return grads["decoder"]["patch_out"]["kernel"]


@pytest.mark.slow
def test_nothing_is_felt_before_the_start(play, through, batch, params):
  (grads, critic_grads), sums = play(2.0, START - 1)
  loss_fn = functools.partial(vae_loss.vae_loss, **through, **LOSS)
  plain, plain_sums = jax.jit(jax.grad(loss_fn, has_aux=True))(
    params, batch, jax.random.key(0)
  )
  runs.assert_near(grads, plain, 1e-4)
  assert critic_grads["w"] == 0
  for name, (total, count) in plain_sums.items():
    np.testing.assert_allclose(sums[name], (total, count), rtol=1e-5)
  assert sums["gan_critic"] == (0, 0)


@pytest.mark.slow
def test_at_the_last_layer_both_gradients_are_alike(play, batch, params):
  (alone, _), _ = play(2.0, 0)
  (grads, _), sums = play(2.0, START)
  added = jax.tree.map(jnp.subtract, grads, alone)
  length = lambda tree: optax.tree.norm(kernel(tree))
  np.testing.assert_allclose(length(added), WEIGHT * length(alone), rtol=1e-3)
  # A critic twice as steep adds no more, and one that says the contrary
  # pulls the other way.
  (steep, _), steep_sums = play(4.0, START)
  runs.assert_near(kernel(steep), kernel(grads), 1e-4)
  ratio = sums["gan_weight"][0] / steep_sums["gan_weight"][0]
  np.testing.assert_allclose(ratio, 2, rtol=1e-3)
  (contrary, _), _ = play(-2.0, START)
  removed = jax.tree.map(jnp.subtract, contrary, alone)
  runs.assert_near(kernel(removed), -kernel(added), 1e-3)


def test_the_adaptive_weight_is_clamped(play):
  _, sums = play(1e-9, START)
  weight, count = sums["gan_weight"]
  np.testing.assert_allclose(weight / count, WEIGHT * vae_gan.MAX_SCALE)


@pytest.mark.slow
def test_the_critic_has_a_hinge(play, batch, through, params):
  outs = vae_loss.reconstruct(params, batch, jax.random.key(0), **through)
  w, expected, r1 = 0.7, 0.0, 0.0
  for kind in pipeline.KINDS:
    score = lambda x: np.asarray(linear({"w": w}, x))
    real = vae_loss.pixels(batch, kind)
    hinge = np.maximum(1 - score(real), 0).mean(1)
    hinge += np.maximum(1 + score(outs[kind][0]), 0).mean(1)
    expected += 0.5 * hinge.sum()
    r1 += len(real) * 0.5 * w**2 / real[0].size
  _, sums = play(w, START)
  np.testing.assert_allclose(sums["gan_critic"], (expected, N), rtol=1e-4)
  _, with_r1 = play(w, START, r1_weight=3.0)
  gained = with_r1["gan_critic"][0] - sums["gan_critic"][0]
  np.testing.assert_allclose(gained, 3 * r1, rtol=0.05)


@pytest.mark.slow
def test_the_game_on_eight_devices_is_that_on_one():
  """With no patch: the last layer is then a convolution."""
  raw = digits.Digits(num_frames=5, canvas=16, num_samples=64)
  settings = dict(num_clips=8, num_images=8, seed=0, first_step=0, num_steps=1)
  batch = next(pipeline.vae_batches(raw, **settings))
  model = vae.make_vae("debug", patch=(1, 1, 1), width=16)
  critic = discriminator.Discriminator(width=8, num_layers=1)
  apply_fn = lambda params, *args: model.apply({"params": params}, *args)
  apply_fns = dict.fromkeys(pipeline.KINDS, apply_fn)
  through = dict(model=model, apply_fns=apply_fns)
  video = jnp.zeros(batch["video_BTHWC"].shape)
  params, critic_params = (
    runs.stirred(jax.jit(x.init)(jax.random.key(0), video)["params"])
    for x in (model, critic)
  )
  play = jax.jit(
    functools.partial(
      vae_gan.gan_grads,
      reconstruct_fn=functools.partial(vae_loss.reconstruct, **through),
      loss_fn=functools.partial(vae_loss.reconstruction_loss, **LOSS),
      critic_fn=lambda params, video: critic.apply({"params": params}, video),
      weight=WEIGHT,
      start_step=START,
    )
  )
  one = play(params, critic_params, batch, jax.random.key(0), START)
  mesh = make_mesh(replica=2, fsdp=4, sequence=1)
  with jax.set_mesh(mesh):
    placed = batches.place(mesh, batch)
    assert len(placed["video_BTHWC"].sharding.device_set) == 8
    many = play(params, critic_params, placed, jax.random.key(0), START)
  assert one[1]["gan_weight"][0] > 0
  runs.assert_near(jax.device_get(many), jax.device_get(one), 1e-4)
