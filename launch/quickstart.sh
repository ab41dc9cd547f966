#!/usr/bin/env bash
# From nothing to videos that follow a text prompt, on two CPU cores:
#   bash launch/quickstart.sh
# Installs into .venv, trains an autoencoder, encodes the digits, trains the
# joint flow model, samples and judges. Leaves everything in runs/quickstart/;
# run again, it goes on where it stopped, or says that it is done. PYTHON
# selects the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=runs/quickstart
config=configs/digits.py

if [ -e "$out/report.json" ]; then
  echo "quickstart.sh: done already, see $out/report.md; remove $out to repeat"
  exit 0
fi
mkdir -p "$out"
before=$(cat "$out/seconds" 2>/dev/null || echo 0)
trap 'echo $((before + SECONDS)) >"$out/seconds"' EXIT

bash launch/install.sh
# Large pages for the step's temporary memory: a quarter less time a step.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
job() { .venv/bin/python -m "goku_jax.$1" "${@:2}"; }

job train --config=$config:stage=vae --workdir=$out/vae
job prepare --config=$config:stage=prepare --config.vae.workdir=$out/vae \
  --workdir=$out/latents
job train --config=$config --config.data.path=$out/latents --workdir=$out/flow
# Before the report, which says that all is done.
cp $out/vae/curves.png $out/loss_vae.png
cp $out/flow/curves.png $out/loss_flow.png
job eval --workdir=$out/flow --suite=digits --out=$out \
  --started=$(($(date +%s) - before - SECONDS))  # as if in one attempt
cat "$out/report.md"
