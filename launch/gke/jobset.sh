#!/usr/bin/env bash
# Runs a job on TPU slices of a GKE cluster that has JobSet:
#   bash launch/gke/jobset.sh --name=NAME --image=IMAGE --claim=CLAIM
#     --topology=v5p:8x8x4 [--slices=N] [--dry_run] -- JOB [ARGUMENT ...]
# IMAGE is of launch/gke/Dockerfile. The PersistentVolumeClaim CLAIM, which all
# pods may write, is /data of each: data and --workdir are below it. kubectl's
# own context says which cluster.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../options.sh"
options "name image claim topology" "slices" "$@"
count slices
read_topology
case $generation in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
  tpu7x) accelerator=tpu7x ;;
esac
# The nodes of a slice that has several hold four chips each.
[ $((chips % 4)) -eq 0 ] || fail "--topology=$topology: no multiple of 4 chips"
hosts=$((chips / 4))

manifest=$(<launch/gke/jobset.yaml)
for field in name image claim slices hosts accelerator shape; do
  manifest=${manifest//"\${$field}"/"${!field}"}
done
# What the job is given may contain anything, so it comes last, and below the
# indentation of its block.
line=$(quote_in_pod "${command[@]}")
line=${line//$'\n'/$'\n                      '}
manifest=${manifest//'${command}'/"$line"}

if [ -n "$dry_run" ]; then
  printf "kubectl apply -f - <<'EOF'\n%s\nEOF\n" "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
