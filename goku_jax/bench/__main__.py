"""Measures speed and memory.

  python -m goku_jax.bench --config=configs/digits.py --steps=20 --json=FILE
  python -m goku_jax.bench --suite=vae
  python -m goku_jax.bench --suite=conv --rounds=10
  python -m goku_jax.bench --suite=packing
  python -m goku_jax.bench --suite=attention
  python -m goku_jax.bench --suite=data --config=configs/digits.py \
    --config.data.path=LATENTS
  python -m goku_jax.bench --suite=peer --rounds=10
  python -m goku_jax.bench --suite=eval
  python -m goku_jax.bench --suite=checkpoint --gib=4
  python -m goku_jax.bench --suite=pod --config=configs/joint.py --short

The suite `step`, which is meant where none is named, times training steps of a
flow config, on one batch that is there already and with the loader (without
data.path only the first, on noise in packs as config.plan says): the median
and the fastest, and by the median tokens and model TFLOPs a second; `mfu` is
their share of the chip's peak (of one product's, where the chip is not known),
`matmul_share` of what matrix products of the MLPs' shapes reach on the same
devices. `cold` and `warm` are a process with an empty compilation cache and
one with what the first left there: seconds of tracing and compiling the step,
and from the start of the process to the end of the first step.

The suite `vae` encodes and decodes one clip by the autoencoder of CogVideoX's
size and by diffusers' PyTorch module of the same weights, in turns, and tells
the fastest round of each. encode_ratio and decode_ratio are PyTorch's seconds
over ours: above 1, ours is faster. `difference` is how far their outputs are
apart, over the largest value. `memory` has the peak of the process, in GiB, for
clips of growing length through the small autoencoder, streamed and whole.
Needs the extra `parity`; a round takes minutes on a few cores.

The suite `conv` has the two forms of the 3-D convolution that the autoencoder
chooses from by backend. Its ratios are the time of XLA's own over that of the
sum of planes.

The suite `packing` plans packs of a realistic mix of images and clips for 64
ranks. `fill` is the share of token places with a token, `imbalance` the cost of
the dearest rank over the mean; the same of packs dealt otherwise, of plain
padding and of batches of one shape; samples a second on one core, planned and
written to arrays. With --calibrate=FILE it times packs of --tokens on this
device instead, forward and backward of --variant, and writes the table that
`costs.calibrated` reads.

The suite `attention` plans packs of images, of images and clips, and of clips.
`executed_over_needed` is the pairs of tokens that the blocks of our TPU kernels
execute over those of a common segment: of the kernel that executes most, and
`forward`, `dq` and `dkv` each; `stock` of JAX's splash kernels, `chunked` of
the kernel that runs anywhere, whose `ratio` is the time of JAX's own attention
over its own, on short packs on this device.

The suite `data` reads steps of a flow config with the step left out, and
computes steps on batches that are there already: `loader_ratio` is the time of
the first over that of the second. Without a config it decodes a video by the
pool of children that `prepare` has, and by PyAV alone: `decode_ratio` is frames
a second of ours over PyAV's, one core each.

The suite `peer` takes the gradients of --variant (small) on one segment of
--tokens (1560) by our transformer and by PyTorch's, diffusers' Wan blocks of
the same sizes, in turns: `ratio` is PyTorch's seconds over ours. `linear_share`
is what the blocks' linear layers alone reach of the speed of one matrix product
of their shape. Needs the extra `parity`.

The suite `eval` reads features of images by Inception and of clips by I3D, and
takes the Frechet distance of features of --features numbers (2048), beside
PyTorch's networks of the same random weights and the published formula by
scipy.linalg.sqrtm: a ratio is the other's seconds over ours, a difference that
of the results, over the largest. Needs the extras `parity` and `eval`.

The suite `checkpoint` saves and restores --gib (1) of noise, split over the
devices there are, and does the same bytes as plain files: how long `save`
blocks over copying in memory, saving over writing, restoring, onto another mesh
too, over copying files, the digests' part of a save, and the peak of a process
that restores over the state.

The suite `pod` checks what a config would run on: devices and mesh (and
--topology), products, memory and bits of each device, exchanges along each axis
of the mesh; unless --short, attention's kernels and some steps too. It tells a
line each. What fails, or is slower than 1.3 times the median, is named and ends
with status 1: docs/first_hour.md.
"""

import os

from absl import flags

from goku_jax import job

SUITES = ("vae", "conv", "packing", "attention", "data", "peer", "eval")
SUITES += ("checkpoint", "step", "pod")

flags.DEFINE_string("suite", "step", f"what is measured: {', '.join(SUITES)}")
flags.DEFINE_integer("steps", 10, "that are timed", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "the fastest of them counts", lower_bound=1)
flags.DEFINE_integer("num_frames", 17, "of the clip, 8k+1", lower_bound=1)
flags.DEFINE_integer("size", 256, "pixels of its sides", lower_bound=8)
flags.DEFINE_integer("width", 128, "of the largest level", lower_bound=32)
flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "computed in")
flags.DEFINE_string("topology", None, "slice that should be here, as v5p:8x8x4")
flags.DEFINE_bool("short", False, "leave out what takes minutes")
flags.DEFINE_list("memory_frames", "17,65,257", "lengths of clips; '' for none")
flags.DEFINE_string("calibrate", None, "file for the times of packs")
flags.DEFINE_string("variant", None, "of the model that is timed")
flags.DEFINE_integer("tokens", None, "of a timed pack", lower_bound=32)
flags.DEFINE_float("gib", 1.0, "of the state", lower_bound=0.001)
flags.DEFINE_integer("features", 2048, "numbers of each", lower_bound=2)


def main(
  suite,
  rounds,
  num_frames,
  size,
  width,
  dtype,
  memory_frames,
  calibrate=None,
  variant=None,
  tokens=None,
  steps=10,
  config=None,
  topology=None,
  short=False,
  features=2048,
  gib=1.0,
):
  """Returns the figures of the suite."""
  if suite not in SUITES:
    raise job.UserError(f"--suite={suite} is not one of {', '.join(SUITES)}")
  lengths = [_read_length(text) for text in memory_frames]
  if suite == "packing":
    return _packing(
      rounds, calibrate, variant or "digits", tokens or 4096, dtype
    )
  if suite == "step":
    return _step(steps, config)
  if suite == "pod":
    return _pod(config, topology, short)
  if suite == "data":
    return _data(rounds, config)
  if config:
    raise job.UserError(f"--suite={suite} takes no --config: leave it out")
  # JAX is slow to import.
  from goku_jax.bench import attention, conv, judges, machine, peer, saving, vae

  beside_others = {
    "attention": lambda: attention.compare(rounds),
    "peer": lambda: peer.compare(
      rounds, variant or "small", tokens or peer.TOKENS
    ),
    "eval": lambda: judges.compare(rounds, features),
    "checkpoint": lambda: saving.compare(rounds, gib),
  }
  if suite in beside_others:
    return {**beside_others[suite](), **machine.describe("float32")}
  if suite == "conv":
    return {**conv.compare(rounds, dtype), **machine.describe(dtype)}
  return {
    **vae.compare(rounds, (num_frames, size, size), width, dtype),
    "memory": {
      f"{way}_{length}_frames_gib": vae.memory(length, size, way)
      for length in lengths
      for way in vae.WAYS
    },
    **machine.describe(dtype),
  }


def _packing(rounds, calibrate, variant, tokens, dtype):
  from goku_jax.bench import machine, pack_times, packing

  if not calibrate:
    return {**packing.compare(rounds), **machine.describe("float32")}
  job.make_folder(os.path.dirname(calibrate) or ".", "calibrate")
  table = pack_times.measure(rounds, variant, tokens, dtype)
  job.write_json(calibrate, table)
  return {**table, "variant": variant, **machine.describe(dtype)}


def _pod(config, topology, short):
  if not config:
    raise job.UserError("--suite=pod needs a --config of stage=flow")
  _check_stage(config)
  from goku_jax.bench import machine, pod
  from goku_jax.parallel import multihost

  multihost.initialize()
  checks = pod.report(config, topology, short)
  failed = [name for name, check in checks.items() if not check["passed"]]
  found = {"checks": checks, **machine.describe(config.model.dtype)}
  if failed:
    raise job.Failed(f"{len(failed)} of {len(checks)} checks failed", found)
  return found


def _step(steps, config):
  if not config:
    raise job.UserError("--suite=step needs a --config of stage=flow")
  _check_stage(config)
  from goku_jax.bench import step

  return step.measure(config, steps)


def _check_stage(config):
  if config.get("stage") != "flow":
    raise job.UserError("--config is not of stage=flow: give one that is")


def _data(rounds, config):
  from goku_jax.bench import machine

  if not config:
    from goku_jax.bench import decode

    return {**decode.compare(rounds), **machine.describe("float32")}
  _check_stage(config)
  from goku_jax.bench import data

  return {
    **data.compare(config, rounds),
    **machine.describe(config.model.dtype),
  }


def _read_length(text: str) -> int:
  if not text.isdecimal() or int(text) % 4 != 1:
    raise job.UserError(f"--memory_frames={text}: set lengths of 4k+1 frames")
  return int(text)


if __name__ == "__main__":
  job.run(main, config="optional")
