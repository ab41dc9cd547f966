"""The autoencoder beside diffusers' own, on the same weights.

Letters: B clips, T H W frames, height, width, C channels.
"""

import contextlib
import pathlib
import tempfile
import time

import jax
import numpy as np

from goku_jax.bench import machine, sides
from goku_jax.convert import formats, tensors
from goku_jax.models import vae, vae_stream
from goku_jax.typing import UserError

METHODS = ("encode", "decode")
WAYS = ("stream", "whole")
FORMAT = "cogvideox_vae"
GIB = 2**30


def compare(rounds: int, size, width: int, dtype: str) -> dict:
  """Seconds and peak memory of both sides, their ratios and difference.

  Args:
    rounds: the fastest counts.
    size: frames, height and width of the clip.
    width: of the largest level; 128 is CogVideoX's.
    dtype: that both compute in.
  """
  sizes = {"variant": "goku", "width": width, "norm": "group"}
  model = vae.make_vae(**sizes)
  T, H, W = size
  if T % 8 != 1:  # two latents are eight frames to diffusers, not five
    raise UserError(f"--num_frames={T}: set 8k+1, as diffusers decodes them")
  shape = model.latent_shape((1, T, H, W, 3))
  rng = np.random.default_rng(0)
  inputs = {
    "encode": rng.uniform(-1, 1, (1, *size, 3)).astype(np.float32),
    "decode": rng.standard_normal(shape).astype(np.float32),
  }
  result = {"size": "x".join(map(str, size)), **sides.versions()}
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    _write_weights(folder, model, sizes)
    both = {
      name: stack.enter_context(sides.start(serve, folder, inputs, dtype))
      for name, serve in (("ours", _ours), ("diffusers", _diffusers))
    }
    for method in METHODS:
      outs = {name: sides.ask(side, method)[2] for name, side in both.items()}
      difference = np.abs(outs["ours"] - outs["diffusers"]).max()
      found = {name: [] for name in both}
      for _ in range(rounds):
        for name, side in both.items():
          found[name].append(sides.ask(side, method)[:2])
      for name, pairs in found.items():
        seconds, peaks = zip(*pairs, strict=True)
        result[f"{name}_{method}_seconds"] = min(seconds)
        result[f"{name}_{method}_peak_gib"] = max(peaks)
      result[f"{method}_ratio"] = (
        result[f"diffusers_{method}_seconds"] / result[f"ours_{method}_seconds"]
      )
      largest = np.abs(outs["diffusers"]).max()
      result[f"{method}_difference"] = float(difference / largest)
  return result


def memory(num_frames: int, size: int, way: str) -> float:
  """Peak GiB of a process that encodes and decodes a clip.

  Args:
    num_frames: of the clip.
    size: pixels of its sides.
    way: "stream", chunk by chunk, or "whole", at once.
  """
  with sides.start(_small, num_frames, size, way) as side:
    return side.recv()


def _write_weights(folder, model, sizes):
  """A folder that both sides read; random, for speed does not depend on it."""
  params = jax.jit(model.init)(
    jax.random.key(0), np.zeros((1, 1, *model.config.stride[1:], 3))
  )["params"]
  channels = model.config.latent_channels
  config = {"model": sizes, "latent_std": [1.0] * channels}
  tensors.write(folder, *formats.FORMATS[FORMAT].write(params, config))


def _serve(connection, fns, peak_fn):
  while True:
    method = connection.recv()
    machine.forget_peak()
    start = time.perf_counter()
    out = fns[method]()
    seconds = time.perf_counter() - start
    connection.send((seconds, peak_fn() / GIB, np.asarray(out, np.float32)))


def _ours(connection, folder, inputs, dtype):
  params, config = formats.FORMATS[FORMAT].read(folder)
  model = vae.make_vae(**config["model"], dtype=dtype)
  params = jax.device_put(params)
  inputs = jax.device_put(inputs)

  def encode():
    return vae_stream.encode(model, params, inputs["encode"])[0]

  def decode():
    return vae_stream.decode(model, params, inputs["decode"])

  _serve(connection, {"encode": encode, "decode": decode}, _peak)


def _diffusers(connection, folder, inputs, dtype):
  import diffusers
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = getattr(torch, dtype)
  model = diffusers.AutoencoderKLCogVideoX.from_pretrained(
    folder, torch_dtype=dtype, low_cpu_mem_usage=False
  ).to(device)
  inputs = {
    name: torch.from_numpy(x).movedim(-1, 1).to(device, dtype)
    for name, x in inputs.items()
  }
  on_host = lambda x: x.movedim(1, -1).float().cpu().numpy()

  @torch.no_grad()
  def encode():
    return on_host(model.encode(inputs["encode"]).latent_dist.mean)

  @torch.no_grad()
  def decode():
    return on_host(model.decode(inputs["decode"]).sample)

  peak = _peak if device == "cpu" else torch.cuda.max_memory_allocated
  _serve(connection, {"encode": encode, "decode": decode}, peak)


def _small(connection, num_frames, size, way):
  """A clip of noise through the small autoencoder, there and back."""
  model = vae.make_vae("small")
  t, h, w = model.config.stride
  rng = np.random.default_rng(0)
  params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1, h, w, 3)))
  params = params["params"]
  noise = lambda n: rng.integers(0, 256, (1, n, size, size, 3), np.uint8)
  machine.forget_peak()
  if way == "stream":
    frames = (noise(n) for n in (1, *[t] * ((num_frames - 1) // t)))
    moments = vae_stream.stream(model, params, frames, "encode")
    latents = (mean for mean, _ in moments)
    for out in vae_stream.stream(model, params, latents, "decode"):
      out.block_until_ready()
  else:
    mean, _ = vae_stream.encode(model, params, noise(num_frames))
    vae_stream.decode(model, params, mean)
  connection.send(_peak() / GIB)


def _peak() -> int:
  return machine.peak_memory()[0]
