"""The autoencoder's loss by hand, and the same whatever the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.data import digits, pipeline
from goku_jax.models import vae
from goku_jax.train.vae_loss import reconstruction_loss, vae_loss
from tests import runs

LOSS = dict(kl_weight=1e-3, l2_weight=1.0)


def through(model):
  apply_fn = lambda params, *args: model.apply({"params": params}, *args)
  return dict(model=model, apply_fns=dict.fromkeys(pipeline.KINDS, apply_fn))


@pytest.fixture(scope="module")
def batch():
  raw = digits.Digits(num_frames=5, canvas=16, num_samples=64)
  settings = dict(seed=0, first_step=0, num_steps=1)
  return next(pipeline.vae_batches(raw, num_clips=3, num_images=4, **settings))


@pytest.fixture(scope="module")
def loss_of(batch):
  model = vae.make_vae("debug")
  init = lambda rng, video: model.init(rng, video)["params"]
  shape = jnp.zeros(batch["video_BTHWC"].shape)
  params = runs.stirred(jax.jit(init)(jax.random.key(0), shape))
  fn = jax.jit(functools.partial(vae_loss, **through(model), **LOSS))
  return lambda batch: fn(params, batch, jax.random.key(0))


def taken(batch, clips, images):
  rows = {"video": clips, "image": images}
  return {name: x[rows[name.split("_")[0]]] for name, x in batch.items()}


def test_a_sample_has_the_same_loss_in_any_batch(batch, loss_of):
  whole, sums = loss_of(batch)
  alone = [loss_of(taken(batch, [i], []))[0] for i in range(3)]
  alone += [loss_of(taken(batch, [], [i]))[0] for i in range(4)]
  np.testing.assert_allclose(sum(alone), whole, rtol=1e-5)
  turned, _ = loss_of(taken(batch, [2, 0, 1], [3, 1, 0, 2]))
  np.testing.assert_allclose(turned, whole, rtol=1e-5)
  assert sums["loss"][1] == 7
  np.testing.assert_allclose(sums["loss"][0], whole, rtol=1e-6)


def test_the_draw_belongs_to_the_visit(batch, loss_of):
  other = {**batch, "video_visit_B": batch["video_visit_B"] + 1}
  assert loss_of(other)[0] != loss_of(batch)[0]


class Fixed:
  """An autoencoder that always says 0.5, with a known posterior."""

  def latent_shape(self, shape):
    return (*shape[:1], 1, 1, 1, 2)

  def apply(self, variables, video, eps):
    latents = jnp.ones(eps.shape)
    return jnp.full(video.shape, 0.5), 2 * latents, -latents


def test_the_loss_is_l1_l2_and_kl(batch):
  black = {**batch, "video_BTHWC": 0 * batch["video_BTHWC"]}
  black["image_BTHWC"] = 0 * batch["image_BTHWC"]
  total, sums = vae_loss(
    {}, jax.tree.map(jnp.asarray, black), jax.random.key(0), **through(Fixed()),
    kl_weight=0.1, l2_weight=2.0,
  )  # fmt: skip
  kl = 0.5 * (4 + np.exp(-1) - 1 + 1)
  np.testing.assert_allclose(total / 7, 1.5 + 2 * 2.25 + 0.1 * kl, rtol=1e-5)
  psnr, n = sums["psnr_image"]
  np.testing.assert_allclose(psnr / n, 10 * np.log10(4 / 2.25), rtol=1e-5)


@pytest.mark.slow
def test_lpips_is_of_frames_drawn_from_each_clip_by_itself(batch):
  """Errors that tell clip and frame, judged by a distance that shows them."""
  batch = jax.tree.map(jnp.asarray, batch)
  error = {
    "video": 1 + jnp.arange(3)[:, None] * 10.0 + jnp.arange(5),
    "image": jnp.arange(4)[:, None] * 0.1,
  }
  outs = {
    kind: (
      batch[f"{kind}_BTHWC"] / 127.5 - 1 + error[kind][..., None, None, None],
      *jnp.zeros((2, len(error[kind]), 1)),
    )
    for kind in pipeline.KINDS
  }
  run = lambda rng, frames: reconstruction_loss(
    outs,
    batch,
    rng,
    kl_weight=0.0,
    l1_weight=0.0,
    l2_weight=0.0,
    lpips_weight=0.5,
    lpips_frames=frames,
    lpips_fn=lambda one, two: jnp.abs(one - two).mean((1, 2, 3)),
  )
  seen = set()
  for seed in range(20):
    total, sums = run(jax.random.key(seed), 1)
    np.testing.assert_allclose(sums["lpips_image"][0], 0.6, rtol=1e-4)
    of_clips = float(sums["lpips_video"][0]) - 3 - 30  # three frames' numbers
    assert of_clips == pytest.approx(round(of_clips), abs=1e-3)
    assert 0 <= round(of_clips) <= 12
    seen.add(round(of_clips))
    np.testing.assert_allclose(total, 0.5 * (33.6 + of_clips), rtol=1e-4)
  assert len(seen) > 4
  many = run(jax.random.key(0), 400)[1]["lpips_video"][0]
  np.testing.assert_allclose(many, 3 + 30 + 3 * 2, rtol=0.01)
