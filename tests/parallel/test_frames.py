"""A clip whose frames lie on eight devices is the clip on one, to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goku_jax.models import vae
from goku_jax.parallel import frames
from goku_jax.parallel.mesh import make_mesh
from goku_jax.typing import UserError
from tests import runs

B, SIDE = 2, 8


@pytest.fixture(scope="module")
def model():
  return vae.make_vae("debug", **runs.VAE_SIZES)


@functools.cache
def drawn(model, latents):
  """Parameters at which all of them matter, a clip, and its noise."""
  video = jax.random.normal(
    jax.random.key(1), (B, 4 * latents - 3, SIDE, SIDE, 3)
  )
  eps = jax.random.normal(jax.random.key(2), model.latent_shape(video.shape))
  init = jax.jit(lambda rng: model.init(rng, video)["params"])
  return runs.stirred(init(jax.random.key(0))), video, eps


def loss_of(apply_fn):
  """Outputs, and gradients to parameters and pixels of a loss of all."""

  def loss(params, video, eps):
    outs = apply_fn(params, video, eps)
    return sum(jnp.square(jnp.sin(3 * out)).mean() for out in outs), outs

  return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@pytest.mark.parametrize(
  ("axes", "latents"),
  [
    pytest.param(
      dict(fsdp=1, sequence=8), 8, id="of a frame each", marks=pytest.mark.slow
    ),
    pytest.param(dict(fsdp=2, sequence=4), 4, id="clips and frames"),
  ],
)
def test_split_frames_give_the_same_values_and_gradients(model, axes, latents):
  mesh = make_mesh(replica=1, **axes)
  params, video, eps = drawn(model, latents)
  plain = lambda params, *args: model.apply({"params": params}, *args)
  (_, outs), grads = loss_of(plain)(params, video, eps)
  with jax.set_mesh(mesh):
    fn = loss_of(frames.shard_frames(model, mesh))
    (_, split_outs), split_grads = jax.device_get(fn(params, video, eps))
  for one, two in zip(split_outs, outs, strict=True):
    assert one.shape == two.shape
    np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())
  # Together to rounding; some alone are sums that all but cancel.
  error = optax.tree.norm(jax.tree.map(jnp.subtract, split_grads, grads))
  assert error < 1e-5 * optax.tree.norm(grads)
  runs.assert_near(split_grads, grads, 1e-4)


def test_a_shard_of_few_frames_reaches_over_its_neighbour():
  mesh = make_mesh(replica=1, fsdp=1, sequence=8)
  x = jnp.arange(8.0).reshape(1, 8, 1, 1, 1)
  spec = jax.sharding.PartitionSpec(None, "sequence")
  left = jax.shard_map(
    lambda x: frames.neighbour_frames(x, 2), mesh=mesh, in_specs=spec,
    out_specs=spec,
  )(x)  # fmt: skip
  expected = [[max(i - 2, 0), max(i - 1, 0)] for i in range(8)]
  np.testing.assert_array_equal(left.reshape(8, 2), expected)


def test_what_cannot_be_split_is_one_line(model):
  mesh = make_mesh(replica=1, fsdp=1, sequence=8)
  with pytest.raises(UserError, match=r"with model\.norm=frame alone"):
    frames.shard_frames(vae.make_vae("debug", norm="group"), mesh)
  apply_fn = frames.shard_frames(model, mesh)
  says = "9 latent frames do not divide among mesh.sequence=8"
  with pytest.raises(UserError, match=says):
    apply_fn({}, jnp.zeros((1, 33, 8, 8, 3)), jnp.zeros((1, 9, 2, 2, 4)))


@pytest.mark.slow
def test_one_shard_is_the_model_itself(model):
  mesh = make_mesh(replica=1, fsdp=8, sequence=1)
  params, video, eps = drawn(model, 2)
  apply_fn = frames.shard_frames(model, mesh)
  plain = model.apply({"params": params}, video, eps)[0]
  np.testing.assert_array_equal(apply_fn(params, video, eps)[0], plain)
