#!/usr/bin/env bash
# Runs a training job on this machine to its end, however often it stops:
#   bash launch/supervise.sh [--tries=N] [--seconds=S] -- train ARGUMENT ...
# Preempted (75) it is started again at once; after a crash, a kill or a hang
# after S seconds (5), each time twice as many, up to 32 S. After N starts (5)
# without a newer whole checkpoint it gives up. A mistake (2) is not tried again,
# nor a job that was stopped through this script, by SIGTERM or Ctrl-C.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
options "" "tries seconds" "$@"
tries=${tries:-5} seconds=${seconds:-5}
count tries
count seconds
workdir=
for argument in "${command[@]}"; do
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
done
[ -n "$workdir" ] || fail "the job needs --workdir=..., to see how far it is"

run bash launch/install.sh
if [ -n "$dry_run" ]; then
  run "${command[@]}"
  exit 0
fi

newest() {  # wherever the run keeps them; -1 for none
  { echo "step -1: whole" && "${command[0]}" -m goku_jax.checkpoint list "$workdir"
  } 2>/dev/null | sed -n 's/^step \(-\{0,1\}[0-9]*\): whole.*/\1/p' | sort -n |
    tail -n 1 || true
}

stopped= child= failed=0 wait=$seconds
trap 'stopped=1; [ -z "$child" ] || kill -TERM $child 2>/dev/null' TERM
trap stopped=1 INT  # which the job has had as well
while true; do
  before=$(newest)
  [ -z "$stopped" ] || exit 75
  "${command[@]}" &
  child=$! status=0
  wait $child || status=$?
  while kill -0 $child 2>/dev/null; do  # a signal has ended the wait, not it
    wait $child && status=0 || status=$?
  done
  case $status in 0 | 2) exit $status ;; esac
  [ -z "$stopped" ] || exit $status
  if [ "$(newest)" -gt "$before" ]; then
    failed=0 wait=$seconds
  else
    failed=$((failed + 1))
  fi
  if [ $failed -ge "$tries" ]; then
    echo "supervise.sh: $failed starts without a newer checkpoint, the last" \
      "ended with $status: giving up" >&2
    exit $status
  fi
  [ $status -ne 75 ] || continue
  echo "supervise.sh: ended with $status; started again in $wait s" >&2
  sleep "$wait" &
  wait $! || true
  [ -z "$stopped" ] || exit $status
  wait=$((wait < 32 * seconds ? 2 * wait : wait))
done
