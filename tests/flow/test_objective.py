"""A packed batch gives each sample the loss and gradient it has alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goku_jax.data import packing
from goku_jax.flow import loss as losses
from goku_jax.flow import objective, process, times
from tests import runs


@pytest.fixture(scope="module")
def batch():
  return runs.flow_batch()


@pytest.fixture(scope="module")
def grad_fn():
  """Summed loss with metrics, and its gradient, at parameters that matter."""
  model, params = runs.flow_model()
  loss_fn = objective.make_loss(model, **runs.LOSS)
  fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  return lambda batch, seed=0: fn(params, batch, jax.random.key(seed))


def samples_of(batch):
  return int((batch["sample_index_BG"] >= 0).sum())


def test_the_batch_mixes_what_it_should(batch):
  is_video = objective.segment_is_video(batch)
  here = batch["sample_index_BG"] >= 0
  assert is_video[here].any()
  assert not is_video[here].all()
  assert (here.sum(1) > 1).all()


def test_packed_gives_the_gradient_of_one_a_pack(batch, grad_fn):
  n = samples_of(batch)
  (packed, sums), grads = grad_fn(batch)
  (alone, alone_sums), alone_grads = grad_fn(
    runs.repack(batch, [[i] for i in range(n)])
  )
  np.testing.assert_allclose(packed, alone, rtol=1e-5)
  chex.assert_trees_all_close(sums, alone_sums, rtol=1e-5)
  assert sums["loss"][1] == n
  runs.assert_near(grads, alone_grads, 1e-5)


def test_each_sample_has_the_loss_it_has_alone(batch, monkeypatch):
  model, params = runs.flow_model()
  seen = []
  inner = losses.mean_square_by_segment
  monkeypatch.setattr(
    losses,
    "mean_square_by_segment",
    lambda *args: seen.append(inner(*args)) or seen[-1],
  )

  loss_fn = objective.make_loss(model, **runs.LOSS)

  @jax.jit
  def loss_by_segment(batch):
    loss_fn(params, batch, jax.random.key(0))
    return seen.pop()

  packed = loss_by_segment(batch)[batch["sample_index_BG"] >= 0]
  for i in range(samples_of(batch)):
    alone = loss_by_segment(runs.repack(batch, [[i]]))
    np.testing.assert_allclose(alone[0, 0], packed[i], rtol=1e-5)
    assert not alone[0, 1:].any()


def test_batches_of_one_sample_add_up_to_the_packed_gradient(batch, grad_fn):
  (packed, _), grads = grad_fn(batch)
  parts = [grad_fn(runs.repack(batch, [[i]])) for i in range(samples_of(batch))]
  np.testing.assert_allclose(sum(p[0][0] for p in parts), packed, rtol=1e-5)
  total = jax.tree.map(lambda *g: sum(g), *(p[1] for p in parts))
  runs.assert_near(grads, total, 1e-5)


def test_other_packs_in_another_order_change_nothing(batch, grad_fn):
  order = np.random.default_rng(0).permutation(samples_of(batch))
  shuffled = runs.repack(
    batch,
    [part.tolist() for part in np.array_split(order, 7)],
    packing.Capacity(400, 120, 12),
  )
  (packed, _), grads = grad_fn(batch)
  (other, _), other_grads = grad_fn(shuffled)
  np.testing.assert_allclose(packed, other, rtol=1e-5)
  runs.assert_near(grads, other_grads, 1e-5)


def test_an_empty_pack_adds_nothing(batch, grad_fn):
  empty = {k: np.zeros_like(x[:1]) for k, x in batch.items()}
  empty["sample_index_BG"] -= 1
  more = {k: np.concatenate([x, empty[k]]) for k, x in batch.items()}
  (packed, sums), grads = grad_fn(batch)
  (other, other_sums), other_grads = grad_fn(more)
  np.testing.assert_allclose(packed, other, rtol=1e-6)
  assert sums["loss"][1] == other_sums["loss"][1]
  runs.assert_near(grads, other_grads, 1e-5)


def test_clips_and_images_are_counted_apart(batch, grad_fn):
  (_, sums), _ = grad_fn(batch)
  for k in (0, 1):
    np.testing.assert_allclose(
      sums["loss_image"][k] + sums["loss_video"][k], sums["loss"][k], rtol=1e-5
    )
  is_video = objective.segment_is_video(batch)
  assert sums["loss_video"][1] == is_video.sum()


def by_sample(batch, drawn):
  """What `draw` gave each sample, by its index."""
  data, noise, t, dropped = map(np.asarray, drawn)
  return {
    int(batch["sample_index_BG"][b, g]): (
      data[b, batch["segment_ids_BL"][b] == g + 1],
      noise[b, batch["segment_ids_BL"][b] == g + 1],
      t[b, g],
      dropped[b, g],
    )
    for b, g in np.argwhere(batch["sample_index_BG"] >= 0)
  }


def draw(batch, seed=0):
  return by_sample(batch, draw_fn()(batch, jax.random.key(seed)))


def draw_fn(**changes):
  settings = runs.LOSS | changes
  time_fn = times.make_times(**settings["time"])
  return jax.jit(
    functools.partial(
      objective.draw,
      time_fn=time_fn,
      caption_drop_rate=settings["caption_drop_rate"],
    )
  )


def test_draws_belong_to_the_sample_and_not_to_its_place(batch):
  batch = {**batch, "tokens_logvar_BLP": 0 * batch["tokens_logvar_BLP"]}
  order = np.random.default_rng(1).permutation(samples_of(batch))
  members = [part.tolist() for part in np.array_split(order, 9)]
  one, two = draw(batch), draw(runs.repack(batch, members))
  assert one.keys() == two.keys()
  for index in one:
    for a, b in zip(one[index], two[index], strict=True):
      np.testing.assert_array_equal(a, b)


def test_draws_differ_by_sample_visit_and_seed(batch):
  first = draw(batch)
  others = draw({**batch, "visit_BG": batch["visit_BG"] + 1}), draw(batch, 1)
  for other in others:
    for index, (_, noise, _, _) in first.items():
      assert (
        abs(np.corrcoef(noise.ravel(), other[index][1].ravel())[0, 1]) < 0.3
      )


def test_captions_drop_at_the_rate_asked_for():
  n = 4000
  batch = dict(
    sample_index_BG=np.arange(n)[None],
    visit_BG=np.zeros((1, n), np.int32),
    quantile_BG=np.zeros((1, n), np.float32),
    segment_ids_BL=np.zeros((1, 1), np.int32),
    positions_BL3=np.zeros((1, 1, 3), np.int32),
    tokens_BLP=np.zeros((1, 1, 1), np.float32),
    tokens_logvar_BLP=np.zeros((1, 1, 1), np.float32),
  )
  for rate in (0.0, 0.1, 1.0):
    fn = draw_fn(caption_drop_rate=rate)
    *_, dropped = fn(batch, jax.random.key(0))
    assert float(dropped.mean()) == pytest.approx(rate, abs=0.02)


def test_data_is_drawn_from_its_posterior(batch):
  drawn = lambda logvar: draw(
    {
      **batch,
      "tokens_logvar_BLP": np.full_like(batch["tokens_logvar_BLP"], logvar),
    }
  )
  mean, wide = drawn(-30.0), drawn(2 * np.log(3.0))
  errors = np.concatenate([(wide[i][0] - mean[i][0]).ravel() for i in mean])
  assert errors.std() == pytest.approx(3.0, rel=0.02)
  assert abs(errors.mean()) < 0.1
  eps = np.concatenate([wide[i][1].ravel() for i in mean])
  assert abs(np.corrcoef(errors, eps)[0, 1]) < 0.02  # not the flow's own noise


def test_a_model_that_says_zero_has_the_loss_of_the_velocity(batch):
  model, params = runs.flow_model()
  zero = jax.tree.map(jnp.zeros_like, params)
  loss_fn = objective.make_loss(model, **runs.LOSS)
  total, sums = jax.jit(loss_fn)(zero, batch, jax.random.key(0))
  want = [np.mean((x - eps) ** 2) for x, eps, _, _ in draw(batch).values()]
  np.testing.assert_allclose(total, np.sum(want), rtol=1e-5)
  assert sums["loss"][1] == len(want)


def test_a_clip_is_shifted_by_the_root_of_its_tokens(batch):
  """The time of each sample is that of its own quantile and token count."""
  settings = runs.LOSS["time"] | dict(shift=2.0, shift_tokens=16)
  *_, t_BG, _ = draw_fn(time=settings)(batch, jax.random.key(0))
  for b, g in np.argwhere(batch["sample_index_BG"] >= 0):
    tokens = (batch["segment_ids_BL"][b] == g + 1).sum()
    t = times.logit_normal(jnp.float32(batch["quantile_BG"][b, g]))
    want = times.shifted(t, 2.0 * np.sqrt(tokens / 16))
    np.testing.assert_allclose(t_BG[b, g], want, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_diffusion_is_the_loss_of_its_own_target(batch, prediction):
  model, params = runs.flow_model()
  zero = jax.tree.map(jnp.zeros_like, params)
  settings = dict(
    objective="ddpm", schedule="cosine", prediction=prediction, min_snr=5.0
  )
  loss_fn = objective.make_loss(model, **runs.LOSS, **settings)
  total, _ = jax.jit(loss_fn)(zero, batch, jax.random.key(0))
  ddpm, want = process.make_process(**settings), 0.0
  for data, noise, t, _ in draw(batch).values():
    t = ddpm.snap(jnp.asarray(t))
    square = np.mean(np.square(ddpm.target(data, noise, t)))
    want += square * ddpm.weight(t)
  np.testing.assert_allclose(total, want, rtol=1e-5)
