#!/usr/bin/env bash
# Runs a job on every worker of a Cloud TPU, or of several slices:
#   bash launch/tpu_vm.sh --tpu=NAME --zone=ZONE [--slices=N]
#     [--topology=v5p:8x8x4 [--tier=spot]] [--dry_run] -- JOB [ARGUMENT ...]
# With --topology the TPU is queued for first (--tier is spot, reserved or
# guaranteed; Google picks the shape of so many chips), else it must be there: a
# TPU VM, or with --slices a queued resource. The checkout goes to ~/goku_jax of
# each worker; data and --workdir are on a disk that all have mounted. For
# several slices gcloud wants `ssh-add ~/.ssh/google_compute_engine` before. A
# preempted TPU is gone: delete it, and run this again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
options "tpu zone" "slices topology tier" "$@"
count slices

if [ "$slices" -gt 1 ]; then
  group=queued-resources nodes=--node-count=$slices
  workers=(--zone="$zone" --node=all --worker=all)
else
  group=tpu-vm nodes=--node-id=$tpu
  workers=(--zone="$zone" --worker=all)
fi
gcloud=(gcloud compute tpus)

await() {
  local state=
  if [ -n "$dry_run" ]; then
    echo "$(quote "$@")  # each minute, until it says ACTIVE"
    return
  fi
  until [ "$state" = ACTIVE ]; do
    state=$("$@")
    case $state in
      ACTIVE) ;;
      FAILED | SUSPEND* | DELETING) fail "the TPU $tpu is $state: delete it" ;;
      *) sleep 60 ;;
    esac
  done
}

case $tier in
  '' | spot | reserved | guaranteed) ;;
  *) fail "--tier=$tier is none: spot, reserved or guaranteed" ;;
esac

if [ -n "$topology" ]; then
  read_topology
  case $generation in
    v4) version=tpu-ubuntu2204-base ;;
    v5e) version=v2-alpha-tpuv5-lite ;;
    v5p) version=v2-alpha-tpuv5 ;;
    v6e) version=v2-alpha-tpuv6e ;;
    *) fail "--topology=$topology: gcloud knows no such TPU VM, use launch/gke" ;;
  esac
  run "${gcloud[@]}" queued-resources create "$tpu" --zone="$zone" \
    --accelerator-type="$type" --runtime-version="$version" "$nodes" \
    ${tier:+"--$tier"}
  await "${gcloud[@]}" queued-resources describe "$tpu" --zone="$zone" \
    "--format=value(state.state)"
fi

archive=.cache/checkout.tar.gz
files="git ls-files -z --cached --others --exclude-standard"
run mkdir -p .cache
run bash -o pipefail -c "$files | tar -czf $archive --null -T -"
run "${gcloud[@]}" $group scp $archive "$tpu:" "${workers[@]}"

# The system's Python is 3.10 on some of these images.
python="[ -e .venv ] || { python3 -m pip install --quiet --user uv &&
  python3 -m uv venv --quiet --seed --python=3.12 .venv; }"
run "${gcloud[@]}" $group ssh "$tpu" "${workers[@]}" --command="set -e
mkdir -p goku_jax
tar -xzf checkout.tar.gz -C goku_jax
cd goku_jax
$python
bash launch/install.sh tpu data text"
run "${gcloud[@]}" $group ssh "$tpu" "${workers[@]}" \
  --command="cd goku_jax && exec $(quote "${command[@]}")"
