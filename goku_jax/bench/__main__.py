"""Measures speed and memory.

  python -m goku_jax.bench --suite=vae --json=FILE

The suite `vae` encodes and decodes one clip by the autoencoder of CogVideoX's
size and by diffusers' PyTorch module of the same weights, in turns, and tells
the fastest round of each. encode_ratio and decode_ratio are PyTorch's seconds
over ours: above 1, ours is faster. `difference` is how far their outputs are
apart, over the largest value. `memory` has the peak of the process, in GiB, for
clips of growing length through the small autoencoder, streamed and whole.
Needs the extra `parity`; a round takes minutes on a few cores.
"""

from absl import flags

from goku_jax import job

SUITES = ("vae",)

flags.DEFINE_string("suite", None, f"what is measured: {', '.join(SUITES)}")
flags.DEFINE_integer("rounds", 3, "the fastest of them counts", lower_bound=1)
flags.DEFINE_integer("num_frames", 17, "of the clip", lower_bound=1)
flags.DEFINE_integer("size", 256, "pixels of its sides", lower_bound=8)
flags.DEFINE_integer("width", 128, "of the largest level", lower_bound=32)
flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "computed in")
flags.DEFINE_list("memory_frames", "17,65,257", "lengths of clips; '' for none")


def main(suite, rounds, num_frames, size, width, dtype, memory_frames):
  """Returns the figures of the suite."""
  if suite not in SUITES:
    raise job.UserError(f"--suite={suite} is not one of {', '.join(SUITES)}")
  from goku_jax.bench import vae  # jax is slow to import

  return {
    **vae.compare(rounds, (num_frames, size, size), width, dtype),
    "memory": {
      f"{way}_{num_frames}_frames_gib": vae.memory(int(num_frames), size, way)
      for num_frames in memory_frames
      for way in vae.WAYS
    },
    **vae.machine(),
  }


if __name__ == "__main__":
  job.run(main)
