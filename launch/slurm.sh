#!/usr/bin/env bash
# Queues a job on GPU nodes of a SLURM cluster, one process a node:
#   bash launch/slurm.sh --nodes=N --gpus=N [--dry_run] -- JOB [ARGUMENT ...]
# --gpus counts those of a node. Submit from a checkout that all nodes see; what
# the site asks for goes by sbatch's own SBATCH_PARTITION, SBATCH_ACCOUNT and
# SBATCH_TIMELIMIT. Preempted, or at the end of its time, the job saves and is
# queued again, as it is where it hung.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
options "nodes gpus" "" "$@"
count nodes
count gpus

# JAX would take one GPU for each process of SLURM, so it is told all. The step
# has SIGTERM five minutes before the time is over; once the first process has
# ended, the others have five minutes as well. SLURM by itself queues again for
# some preemptions alone, not for the statuses 70 (hung) and 75 (saved).
script="#!/usr/bin/env bash
trap : TERM  # the job saves, and this shell waits for it
export JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))
srun --wait=300 --cpu-bind=none $(quote "${command[@]}")
status=\$?
case \$status in 70 | 75) scontrol requeue \$SLURM_JOB_ID ;; esac
exit \$status"
submit=(sbatch --job-name=goku_jax --nodes="$nodes" --ntasks-per-node=1
  --gpus-per-node="$gpus" --exclusive --mem=0
  --requeue --open-mode=append --signal=TERM@300)

run bash launch/install.sh gpu data text
if [ -n "$dry_run" ]; then
  printf "%s <<'EOF'\n%s\nEOF\n" "$(quote "${submit[@]}")" "$script"
else
  "${submit[@]}" <<<"$script"
fi
