#!/usr/bin/env bash
# Goku's recipe from stage to stage in small (docs/recipe.md), on two CPU cores:
#   bash launch/cascade.sh
# Text-to-image, joint training at three sizes, then the branches text-to-video,
# text-to-image and image-to-video, on moving digits of 24, 32 and 40 pixels.
# Leaves all in runs/cascade/, samples of each branch in runs/cascade/samples/;
# run again, it goes on where it stopped. STEPS (600) are those of each stage,
# OUT another folder, PYTHON selects the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${OUT:-runs/cascade}
steps=${STEPS:-600}
mkdir -p "$out/samples"

bash launch/install.sh
# Large pages for the step's temporary memory: a quarter less time a step.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
job() { .venv/bin/python -m "goku_jax.$1" "${@:2}"; }
# NAME CONFIG PIXELS STEPS [argument ...]: one stage
stage() {
  job train --config="configs/$2" --config.data.path="$out/latents_$3" \
    --config.total_steps="$4" --config.save_every_steps="$4" \
    --config.show_every_steps="$4" --workdir="$out/$1" "${@:5}"
}
# NAME FILE [argument ...]: what a branch draws
draw() {
  job sample --workdir="$out/$1" --out="$out/samples/$2" --upscale=8 "${@:3}"
}

# The smallest digits teach the autoencoder the finest strokes.
small=(--config.data.digits.canvas=24 --config.data.digits.num_frames=13)
job train --config=configs/digits.py:stage=vae --workdir="$out/vae" \
  --config.total_steps="$((steps * 5 / 3))" "${small[@]}"
# SIDE [argument ...]: the data of a rung
latents() {
  job prepare --config=configs/digits.py:stage=prepare \
    --config.vae.workdir="$out/vae" --config.data.digits.canvas="$1" \
    --config.data.digits.num_samples="$((steps * 10))" \
    --workdir="$out/latents_$1" "${@:2}"
}
latents 24 "${small[@]}"
latents 32
latents 40

v=variant=digits
stage t2i t2i.py:$v 24 "$steps"
stage joint_288p joint.py:$v,res=288p 24 "$steps" --config.init_from="$out/t2i"
stage joint_480p joint.py:$v,res=480p 32 "$steps" \
  --config.init_from="$out/joint_288p"
stage joint_720p joint.py:$v,res=720p 40 "$steps" \
  --config.init_from="$out/joint_480p"
stage t2v finetune.py:branch=t2v,$v 40 "$steps" \
  --config.init_from="$out/joint_720p"
stage t2i_720p finetune.py:branch=t2i,$v 40 "$steps" \
  --config.init_from="$out/joint_720p"
stage i2v i2v.py:$v 40 "$steps" --config.init_from="$out/t2v"

prompt="the digit five moves left"
picture="a picture of the digit five"
draw t2v t2v.mp4 --prompt="$prompt"
draw t2i_720p t2i.png --prompt="$picture" --num_frames=1
job sample --workdir="$out/t2i_720p" --out="$out/first.png" --num_frames=1 \
  --prompt="$picture"
draw i2v i2v.mp4 --prompt="$prompt" --image="$out/first.png"
echo "samples of the branches: $out/samples"
