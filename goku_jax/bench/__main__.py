"""Measures speed and memory.

  python -m goku_jax.bench --suite=vae --json=FILE
  python -m goku_jax.bench --suite=conv --rounds=10

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
"""

import os
import platform

from absl import flags

from goku_jax import job

SUITES = ("vae", "conv")

flags.DEFINE_string("suite", None, f"what is measured: {', '.join(SUITES)}")
flags.DEFINE_integer("rounds", 3, "the fastest of them counts", lower_bound=1)
flags.DEFINE_integer("num_frames", 17, "of the clip, 8k+1", lower_bound=1)
flags.DEFINE_integer("size", 256, "pixels of its sides", lower_bound=8)
flags.DEFINE_integer("width", 128, "of the largest level", lower_bound=32)
flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "computed in")
flags.DEFINE_list("memory_frames", "17,65,257", "lengths of clips; '' for none")


def main(suite, rounds, num_frames, size, width, dtype, memory_frames):
  """Returns the figures of the suite."""
  if suite not in SUITES:
    raise job.UserError(f"--suite={suite} is not one of {', '.join(SUITES)}")
  lengths = [_read_length(text) for text in memory_frames]
  from goku_jax.bench import conv, vae  # jax is slow to import

  if suite == "conv":
    return {**conv.compare(rounds, dtype), **_machine(dtype)}
  return {
    **vae.compare(rounds, (num_frames, size, size), width, dtype),
    "memory": {
      f"{way}_{length}_frames_gib": vae.memory(length, size, way)
      for length in lengths
      for way in vae.WAYS
    },
    **_machine(dtype),
  }


def _read_length(text: str) -> int:
  if not text.isdecimal() or int(text) % 4 != 1:
    raise job.UserError(f"--memory_frames={text}: set lengths of 4k+1 frames")
  return int(text)


def _machine(dtype):
  """What the figures are of."""
  import jax

  return {
    "dtype": dtype,
    "device": jax.devices()[0].device_kind,
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
    "jax": jax.__version__,
  }


if __name__ == "__main__":
  job.run(main)
