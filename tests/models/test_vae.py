"""The autoencoder: causal in time, the same in chunks as at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.models import vae
from goku_jax.typing import UserError
from tests import runs

MODEL = vae.make_vae("debug", **runs.VAE_SIZES)
FRAMES, SIDE = 13, 8  # four latent frames of 2x2


@pytest.fixture(scope="module")
def params(fill):
  init = jax.eval_shape(
    MODEL.init, jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3))
  )
  return fill(init["params"])


@pytest.fixture(scope="module")
def video():
  shape = (2, FRAMES, SIDE, SIDE, 3)
  return jax.random.uniform(jax.random.key(1), shape, minval=-1.0)


@pytest.fixture(scope="module")
def latents():
  shape = MODEL.latent_shape((2, FRAMES, SIDE, SIDE, 3))
  return jax.random.normal(jax.random.key(2), shape)


apply = jax.jit(MODEL.apply, static_argnames=("method", "is_first", "mutable"))


def near(a, b):
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def in_chunks(params, x, lengths, method):
  """What one chunk leaves in `context` goes into the next."""
  outs, state, start = [], {}, 0
  for length in lengths:
    out, state = apply(
      {"params": params} | state,
      x[:, start : start + length],
      is_first=start == 0,
      method=method,
      mutable=("context",),
    )
    outs.append(out)
    start += length
  assert start == x.shape[1]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *outs)


@pytest.mark.parametrize(
  "lengths", [(1, 1, 1, 1), (2, 2), (3, 1), (1, 3), (1, 2, 1), (4,)]
)
def test_decoding_in_chunks_equals_decoding_at_once(params, latents, lengths):
  whole = apply({"params": params}, latents, method="decode")
  near(in_chunks(params, latents, lengths, "decode"), whole)


@pytest.mark.parametrize("lengths", [(1, 4, 4, 4), (5, 8), (9, 4), (1, 12)])
def test_encoding_in_chunks_equals_encoding_at_once(params, video, lengths):
  whole = apply({"params": params}, video, method="encode")
  jax.tree.map(near, in_chunks(params, video, lengths, "encode"), whole)


def test_an_image_is_the_first_frame_of_its_video(params, video, latents):
  """And so an image's latent is the first one of any clip it starts."""
  clip, _ = apply({"params": params}, video, method="encode")
  image, _ = apply({"params": params}, video[:, :1], method="encode")
  near(image, clip[:, :1])
  clip = apply({"params": params}, latents, method="decode")
  image = apply({"params": params}, latents[:, :1], method="decode")
  assert image.shape == (2, 1, SIDE, SIDE, 3)
  near(image, clip[:, :1])


def test_a_still_video_has_one_latent_for_all_its_frames(params, video):
  still = jnp.repeat(video[:, :1], FRAMES, 1)
  mean, _ = apply({"params": params}, still, method="encode")
  near(mean, jnp.repeat(mean[:, :1], mean.shape[1], 1))


def reach(fn, x, frame):
  """Frames of `x` that frame `frame` of `fn(x)` has a gradient to."""
  loss = lambda x: jnp.sum(jnp.sin(fn(x)[:, frame]))
  grad = np.asarray(jax.jit(jax.grad(loss))(x))
  return np.flatnonzero(np.abs(grad).max((0, 2, 3, 4))).tolist()


@pytest.mark.parametrize("frame", [0, 1, 3])
def test_a_latent_depends_on_no_later_frame(params, video, frame):
  encode = lambda x: MODEL.apply({"params": params}, x, method="encode")[0]
  assert reach(encode, video, frame) == list(range(4 * frame + 1))


@pytest.mark.parametrize("frame", [0, 1, 4, 5])
def test_a_decoded_frame_depends_on_no_later_latent(params, latents, frame):
  decode = lambda x: MODEL.apply({"params": params}, x, method="decode")
  assert reach(decode, latents, frame) == list(range((frame + 3) // 4 + 1))


@pytest.mark.parametrize(
  ("frames", "size"), [(1, (8, 8)), (5, (8, 16)), (17, (8, 8))]
)
def test_clips_of_4k_plus_1_frames_make_k_plus_1_latents(frames, size):
  shape = (2, frames, *size, 3)
  expected = (2, (frames - 1) // 4 + 1, size[0] // 4, size[1] // 4, 4)
  assert MODEL.latent_shape(shape) == expected
  out, _ = jax.eval_shape(
    MODEL.init_with_output, jax.random.key(0), jnp.zeros(shape)
  )
  assert [x.shape for x in out] == [shape, expected, expected]


@pytest.mark.parametrize("shape", [(6, 8, 8), (5, 10, 8), (5, 8, 10)])
def test_a_clip_that_the_stride_does_not_divide_is_refused(shape):
  with pytest.raises(UserError, match=r"set 4k.1 frames and sides that 4x4"):
    MODEL.latent_shape((2, *shape, 3))


def test_calling_adds_noise_of_the_posteriors_width(params, video):
  noise = jax.random.normal(jax.random.key(3), MODEL.latent_shape(video.shape))
  out, mean, logvar = apply({"params": params}, video, noise)
  sample = mean + jnp.exp(logvar / 2) * noise
  near(out, apply({"params": params}, sample, method="decode"))
  near(
    apply({"params": params}, video)[0],
    apply({"params": params}, mean, method="decode"),
  )


def test_beside_silent_levels_blocks_go_through_a_linear_coder(params, video):
  names = {"conv_out": "encoder", "patch_out": "decoder"}
  silent = jax.tree.map(lambda x: x, params)
  for name, half in names.items():
    silent[half][name] = jax.tree.map(jnp.zeros_like, silent[half][name])
  mean, _ = apply({"params": silent}, video, method="encode")
  out = apply({"params": silent}, mean, method="decode")
  linear = {half: params[half]["linear"] for half in names.values()}
  whole = jnp.concatenate([jnp.repeat(video[:, :1], 3, 1), video], 1)
  for t in range(FRAMES // 4 + 1):
    block = whole[:, 4 * t : 4 * t + 4, :4, :4].reshape(2, -1)
    code = block @ linear["encoder"]["kernel"] + linear["encoder"]["bias"]
    near(mean[:, t, 0, 0], code)
    back = code @ linear["decoder"]["kernel"] + linear["decoder"]["bias"]
    frames = jnp.arange(4 * t - 3, 4 * t + 1)
    back = back.reshape(2, 4, 4, 4, 3)[:, frames >= 0]
    near(out[:, frames[frames >= 0], :4, :4], back)


def test_untrained_a_linear_coder_gives_back_what_it_made(video):
  """Its waves are orthonormal, the first of them even."""
  params = jax.jit(MODEL.init)(jax.random.key(0), video)["params"]
  through = lambda x: apply({"params": params}, x)[0]
  made = through(video)
  near(through(made)[:, 1:], made[:, 1:])  # the first is repeated into a block
  grey = jnp.full_like(video, 0.3)
  near(through(grey), grey)


@pytest.mark.slow
def test_norms_that_read_latents_begin_as_those_that_read_none(video):
  """The modulation of new parameters is one and zero."""
  sizes = runs.VAE_SIZES | dict(linear=False)  # whose levels begin silent
  outs = []
  for reads in (True, False):
    model = vae.make_vae("debug", **sizes, latent_norms=reads)
    (out, *_), made = jax.jit(model.init_with_output)(jax.random.key(0), video)
    assert ("modulation" in str(jax.tree.structure(made))) == reads
    outs.append(out)
  near(*outs)
  assert outs[0].std() > 0.1


def test_bfloat16_stays_near_and_comes_out_as_float32(params, video):
  half = vae.make_vae("debug", **runs.VAE_SIZES, dtype="bfloat16")
  mean, logvar = jax.jit(lambda x: half.apply({"params": params}, x)[1:])(video)
  assert mean.dtype == logvar.dtype == jnp.float32
  expected = apply({"params": params}, video)[1]
  assert np.abs(mean - expected).max() < 0.05 * np.abs(expected).max()


def test_goku_has_the_parameters_of_cogvideox():
  """215.6 M, Seaweed-7B (arXiv:2504.08685), table of autoencoders."""
  model = vae.make_vae("goku")
  shape = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), shape)["params"]
  count = sum(x.size for x in jax.tree.leaves(params))
  assert model.config.stride == (4, 8, 8)
  assert model.config.latent_channels == 16
  assert count == pytest.approx(215.6e6, rel=0.01)


@pytest.mark.parametrize("variant", ["goku", "small", "digits", "debug"])
def test_flops_are_those_that_xla_counts(variant):
  """XLA counts every operation, but no product with a zero of the border."""
  model = vae.make_vae(variant)
  t, h, w = model.config.stride
  shape = (1, 4 * t + 1, 16 * h, 16 * w, 3)
  video = jax.ShapeDtypeStruct(shape, jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
  run = lambda params, video: model.apply({"params": params}, video)
  counted = jax.jit(run).lower(params, video).cost_analysis()["flops"]
  formula = model.config.flops_per_position * 5 * 16 * 16
  assert 0.8 * formula < counted < 1.05 * formula


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    (dict(norm="batch"), "model.norm='batch' is not one of frame, group"),
    (dict(width=20), "model.width=20 x 1 is not a multiple of"),
    (dict(time_levels=2), "model.time_levels=2: there are 1 downsamplings"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
  with pytest.raises(UserError, match=message):
    vae.make_vae("debug", **(runs.VAE_SIZES | sizes))


@pytest.mark.slow
def test_blocks_computed_again_change_nothing(params, video):
  again = vae.make_vae("debug", **runs.VAE_SIZES, remat=True)
  loss = lambda model: jax.jit(
    jax.grad(lambda p: jnp.sum(model.apply({"params": p}, video)[0] ** 2))
  )(params)
  jax.tree.map(near, loss(again), loss(MODEL))


def test_an_unknown_variant_is_refused_with_the_known_ones():
  with pytest.raises(UserError, match="variant='huge' is not one of goku"):
    vae.make_vae("huge")


def test_an_unknown_dtype_is_refused_with_the_known_ones():
  with pytest.raises(UserError, match="dtype='half' is not one of float32"):
    vae.make_vae("debug", dtype="half")
