"""Wan's autoencoder: causal in time, the same in chunks as at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import vae, vae_stream, wan_vae

# Both downsamplings halve time, so that one streams after the other.
MODEL = vae.make_vae("wan_debug", time_levels=2)
FRAMES, SIDE = 13, 8  # four latent frames of 2x2


@pytest.fixture(scope="module")
def params(fill):
  init = jax.eval_shape(
    MODEL.init, jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3))
  )
  return fill(init["params"])


@pytest.fixture(scope="module")
def video():
  shape = (1, FRAMES, SIDE, SIDE, 3)
  return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def latents():
  shape = MODEL.latent_shape((1, FRAMES, SIDE, SIDE, 3))
  return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def near(a, b):
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def in_chunks(params, x, lengths, method):
  ends = np.cumsum(lengths)
  assert ends[-1] == x.shape[1]
  parts = np.split(x, ends[:-1], 1)
  outs = list(vae_stream.stream(MODEL, params, parts, method))
  return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *outs)


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (3, 1), (1, 2, 1)])
def test_decoding_in_chunks_equals_decoding_at_once(params, latents, lengths):
  whole = vae_stream.decode(MODEL, params, latents)
  assert whole.shape == (1, FRAMES, SIDE, SIDE, 3)
  near(in_chunks(params, latents, lengths, "decode"), whole)


@pytest.mark.parametrize("lengths", [(1, 4, 4, 4), (5, 8), (1, 12)])
def test_encoding_in_chunks_equals_encoding_at_once(params, video, lengths):
  whole = vae_stream.encode(MODEL, params, video)
  assert whole[0].shape == MODEL.latent_shape(video.shape)
  jax.tree.map(near, in_chunks(params, video, lengths, "encode"), whole)


def test_an_image_is_the_first_frame_of_its_video(params, video, latents):
  clip, _ = vae_stream.encode(MODEL, params, video)
  image, _ = vae_stream.encode(MODEL, params, video[:, :1])
  near(image, clip[:, :1])
  clip = vae_stream.decode(MODEL, params, latents)
  near(vae_stream.decode(MODEL, params, latents[:, :1]), clip[:, :1])


def test_no_frame_depends_on_a_later_one(params, video, latents):
  louder = video.copy()
  louder[:, 5:] *= -1
  one, two = (vae_stream.encode(MODEL, params, x)[0] for x in (video, louder))
  near(two[:, :2], one[:, :2])
  assert np.abs(two - one)[:, 2:].max() > 1e-2
  louder = latents.copy()
  louder[:, 2:] *= -1
  one, two = (vae_stream.decode(MODEL, params, x) for x in (latents, louder))
  near(two[:, :5], one[:, :5])
  assert np.abs(two - one)[:, 5:].max() > 1e-2


def test_the_norm_of_nothing_is_nothing_and_has_a_gradient():
  layer = wan_vae.PositionNorm()
  loss = lambda x: layer.apply({"params": {"scale": jnp.ones(8)}}, x).sum()
  assert loss(jnp.zeros((2, 8))) == 0
  assert np.isfinite(jax.grad(loss)(jnp.zeros((2, 8)))).all()


def test_bfloat16_stays_near_and_comes_out_as_float32(params, video):
  half = vae.make_vae("wan_debug", time_levels=2, dtype="bfloat16")
  mean, _ = vae_stream.encode(half, params, video)
  assert mean.dtype == np.float32
  expected, _ = vae_stream.encode(MODEL, params, video)
  assert np.abs(mean - expected).max() < 0.05 * np.abs(expected).max()


def test_the_published_one_has_126_9_million_parameters():
  model = vae.make_vae("wan")
  assert model.config.stride == (4, 8, 8)
  video = jnp.zeros((1, 5, 8, 8, 3))
  init = jax.eval_shape(model.init, jax.random.key(0), video)
  count = sum(x.size for x in jax.tree.leaves(init["params"]))
  assert abs(count / 126.9e6 - 1) < 0.01


def test_flops_are_those_of_the_kernels():
  """Counted from each kernel and how often it is applied."""
  model = vae.make_vae("wan")
  assert model.config.flops_per_position == 2 * macs_of(model)


def macs_of(model):
  """Products at one latent position, far from the start of a clip."""
  init = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3))
  )
  places = {0: 4 * 64, 1: 4 * 16, 2: 2 * 4, 3: 1}  # positions of a level
  total = 0
  leaves, _ = jax.tree_util.tree_flatten_with_path(init["params"])
  for keys, leaf in leaves:
    half, *modules, name = (key.key for key in keys)
    if name != "kernel":
      continue
    level = 3
    if modules[0].startswith("level_"):
      level = int(modules[0].split("_")[1])
    elif (half, modules[0]) in (
      ("encoder", "conv_in"),
      ("decoder", "conv_out"),
    ):
      level = 0
    n = places[level]
    if modules[-1] == "time":  # after halving, or before doubling
      n = places[level + 1] if half == "encoder" else places[level]
    elif modules[-1] == "conv2d":
      # Sides are halved before frames, and doubled after them.
      n = places[level] // 4 if half == "encoder" else places[level - 1]
    total += n * leaf.size
  return total
