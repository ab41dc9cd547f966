"""Which steps are bad, by their own numbers and by those before them."""

import jax
import numpy as np

from goku_jax.train import guards

SIGMA = 6.0


def judge_all(losses, size=4, sigma=SIGMA):
  """Whether each step of a run is good, and the window after the last."""
  judge = jax.jit(guards.judge, static_argnums=2)
  good, window = [], guards.init_window(size)
  for loss in losses:
    metrics = {"loss": np.float32(loss), "grad_norm": np.float32(1)}
    is_good, window = judge(window, metrics, sigma)
    good.append(bool(is_good))
  return good, np.asarray(window["loss"]).tolist()


def test_a_spike_is_bad_once_the_window_is_full():
  assert judge_all([1, 2, 1, 100])[0] == [True] * 4
  assert judge_all([1, 2, 1, 2, 100])[0] == [True] * 4 + [False]
  assert judge_all([1, 2, 1, 2, 100], sigma=0.0)[0] == [True] * 5


def test_a_fall_is_no_spike():
  assert judge_all([1, 2, 1, 2, -100])[0] == [True] * 5


def test_numbers_that_stay_higher_are_good_again():
  assert judge_all([1, 2, 1, 2, 100, 100])[0][-2:] == [False, True]


def test_what_is_not_finite_is_bad_and_leaves_the_window_as_it_was():
  good, window = judge_all([1, 2, 1, 2, np.nan, np.inf, -np.inf])
  assert good == [True] * 4 + [False] * 3
  assert window == [1, 2, 1, 2]


def test_a_large_gradient_is_scaled_down_to_the_last_ones():
  norms = np.array([1.0, 2.0, 1.0, 2.0], np.float32)  # 1.5 and 0.5
  window = {"grad_norm": norms, "loss": norms}
  for norm, want in ((2.9, 2.9), (30.0, 3.0), (0.1, 0.1)):
    grads = {"w": np.float32([0.6 * norm, 0.8 * norm])}
    clipped = guards.clip(grads, np.float32(norm), window, 3.0)
    np.testing.assert_allclose(np.linalg.norm(clipped["w"]), want, rtol=1e-5)


def test_no_gradient_is_clipped_before_the_window_is_full():
  window = guards.init_window(4)
  grads = {"w": np.float32([30.0])}
  clipped = guards.clip(grads, np.float32(30), window, 3.0)
  assert clipped["w"] == 30
