#!/usr/bin/env bash
# Runs a job on TPU slices of a GKE cluster that `xpk cluster create` made:
#   bash launch/gke/xpk.sh --cluster=CLUSTER --name=NAME --image=IMAGE
#     --topology=v5p:8x8x4 [--slices=N] [--dry_run] -- JOB [ARGUMENT ...]
# IMAGE is of launch/gke/Dockerfile; data and --workdir are on what was attached
# by `xpk storage attach --auto-mount=true`. xpk finds project and zone in
# gcloud's settings.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../options.sh"
options "cluster name image topology" "slices" "$@"
count slices
read_topology

# xpk starts again after signals, and after 70 (hung) and 75 (preempted, saved) if
# told so; preemptions count here. Saving takes longer than its 30 seconds.
run xpk workload create --cluster="$cluster" --workload="$name" \
  --docker-image="$image" --tpu-type="$type" --num-slices="$slices" \
  --max-restarts=100 --restart-on-exit-codes=70,75 \
  --termination-grace-period-seconds=600 \
  --command="$(quote_in_pod "${command[@]}")"
