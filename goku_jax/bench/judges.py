"""What `eval` computes beside what others' evaluators do, on this CPU.

Networks: Inception and I3D, ours and PyTorch's of the same random weights, in
the batches that `eval` reads them in; float32 pixels of the network's own size
to features, so nothing is resized. PyTorch's is eager, as evaluators run it,
with channels last, which is its faster layout here.

Statistics: our Frechet distance of two Gaussians, and the formula that FID is
published with, by scipy.linalg.sqrtm of the product of the covariances.

Letters: N samples, D numbers in a feature.
"""

import contextlib
import os
import pathlib
import tempfile
import time

import jax
import numpy as np

from goku_jax.bench import sides
from goku_jax.convert import formats
from goku_jax.eval import judges, statistics
from goku_jax.models.judges import i3d, inception
from goku_jax.typing import UserError

FRAMES = 16  # of a clip, as FVD is most often published
INPUTS = {  # of one sample
  "inception": (inception.SIDE, inception.SIDE, 3),
  "i3d": (FRAMES, i3d.SIDE, i3d.SIDE, 3),
}
FORMATS = {"inception": "inception_fid", "i3d": "i3d"}
ROWS = {"inception": judges.IMAGES, "i3d": judges.CLIPS}
FEATURES = 2048


def compare(rounds: int, features: int = FEATURES, rows=ROWS) -> dict:
  """Features a second and seconds of both sides, ratios and differences.

  Args:
    rounds: of the networks, of which the fastest counts. The statistics have
      one, for sqrtm takes a minute.
    features: numbers in those of the statistics, D.
    rows: images or clips in a batch, by network.

  Raises:
    UserError: PyTorch or scipy is missing, or the device is no CPU.
  """
  if jax.default_backend() != "cpu":
    raise UserError("--suite=eval is of CPUs: set JAX_PLATFORMS=cpu")
  result = sides.versions("torch", "scipy", extras="parity,eval")
  for network in INPUTS:
    result.update(_compare_networks(network, rows[network], rounds))
  return {**result, **_compare_statistics(features)}


def _compare_networks(network, rows, rounds):
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    start = lambda serve: stack.enter_context(
      sides.start(serve, network, rows, folder)
    )
    # PyTorch's side writes the weights that ours reads, then answers.
    peer = start(_peer)
    wanted = sides.ask(peer, network)[1]
    ours = start(_ours)
    found = sides.ask(ours, network)[1]
    seconds = [
      [sides.ask(side, network)[0] for side in (ours, peer)]
      for _ in range(rounds)
    ]
  mine, theirs = np.min(seconds, 0).tolist()
  difference = np.abs(found - wanted).max() / np.abs(wanted).max()
  return {
    f"{network}_rows": rows,
    f"{network}_per_second": rows / mine,
    f"{network}_torch_per_second": rows / theirs,
    f"{network}_ratio": theirs / mine,
    f"{network}_difference": float(difference),
  }


def _compare_statistics(D):
  def measure(distance):
    with sides.start(_statistics, distance, D) as side:
      return sides.ask(side, "distance")

  seconds, found = measure(statistics.frechet_distance)
  peer_seconds, wanted = measure(sqrtm_distance)
  return {
    "statistics_features": D,
    "statistics_seconds": seconds,
    "sqrtm_seconds": peer_seconds,
    "statistics_ratio": peer_seconds / seconds,
    "statistics_difference": abs(found - wanted) / wanted,
  }


def sqrtm_distance(one, two) -> float:
  """The squared Frechet distance as pytorch-fid computes it."""
  from scipy import linalg

  root = linalg.sqrtm(one.covariance @ two.covariance)
  traces = np.trace(one.covariance) + np.trace(two.covariance)
  # Rounding leaves imaginary parts.
  cross = np.trace(root).real
  return float(np.square(one.mean - two.mean).sum() + traces - 2 * cross)


def make_gaussians(D: int):
  """Two, of 3 D samples of mixed noise that a ReLU cut, as networks' are."""
  rng = np.random.default_rng(0)
  for shift in (0.0, 0.1):
    mixing = rng.standard_normal((D, D)) / np.sqrt(D)
    features_ND = rng.standard_normal((3 * D, D)) @ mixing + shift
    yield statistics.fit(np.maximum(features_ND, 0))


def _serve(connection, call):
  while True:
    connection.recv()
    start = time.perf_counter()
    out = call()
    connection.send((time.perf_counter() - start, out))


def _statistics(connection, distance, D):
  one, two = make_gaussians(D)
  _serve(connection, lambda: distance(one, two))


def _inputs(network, rows):
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (rows, *INPUTS[network])).astype(np.float32)


def _ours(connection, network, rows, folder):
  read = formats.FORMATS[FORMATS[network]].read
  params, config = read(pathlib.Path(folder, "theirs.safetensors"))
  inputs = _inputs(network, rows)

  def apply(params, inputs):
    if network == "i3d":
      return i3d.I3D(config["bn_eps"]).apply({"params": params}, inputs)
    return inception.Inception().apply({"params": params}, inputs).pool3

  read_all = judges.in_batches(apply, params, rows)
  _serve(connection, lambda: read_all(inputs))


def _peer(connection, network, rows, folder):
  import torch

  from goku_jax.bench import torch_i3d, torch_inception, torch_weights

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  kinds = {"inception": torch_inception.Inception, "i3d": torch_i3d.I3D}
  model = torch_weights.make(kinds[network])
  torch_weights.write(model, pathlib.Path(folder))
  inputs = torch.from_numpy(_inputs(network, rows)).movedim(-1, 1)

  @torch.inference_mode()
  def apply():
    out = model(inputs)
    return (out if network == "i3d" else out[0]).numpy()

  _serve(connection, apply)
