#!/usr/bin/env bash
# The first hour on new machines, started on every host at once:
#   bash launch/first_hour.sh --config=C [--workdir=W] [bench flag ...]
#   bash launch/first_hour.sh --config=C --short   # before each start
# Checks devices, links, kernels and some steps (docs/first_hour.md); then trains
# the digits, kills them after a checkpoint, and goes on, on another mesh. The
# workdir, on a disk that all hosts share, is new; what each host says goes to
# W.logs beside it. Ends with 1 if a line fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

workdir=runs/first_hour short= checks=()
for argument in "$@"; do
  case $argument in
    -h | --help)
      sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' launch/first_hour.sh
      exit 0
      ;;
    --workdir=*) workdir=${argument#*=} ;;
    --short) short=1 checks+=("$argument") ;;
    *) checks+=("$argument") ;;
  esac
done
bench() {
  .venv/bin/python -m goku_jax.bench --suite=pod "${checks[@]}" |
    grep --line-buffered -E '^(pass|FAIL)  '
}
if [ -z "$short" ] && [ -e "$workdir" ]; then
  echo "first_hour.sh: $workdir is there already; name a new --workdir" >&2
  exit 2
fi
bash launch/install.sh
if [ -n "$short" ]; then
  bench || exit 1
  exit 0
fi

logs=$workdir.logs/$(hostname)
mkdir -p "$logs"
status=0
bench | tee "$logs/checks" || status=1
devices=$(sed -n 's/^....  devices  *\([0-9]*\) of .*/\1/p' "$logs/checks")
[ -n "$devices" ] || exit 1  # it has told why

# An array and no function: $! would be a shell's, and Python would live on. As
# many packs as devices, which any mesh of them shares. The first run is too long
# to end before it is killed.
train=(.venv/bin/python -m goku_jax.train --config=configs/digits.py:debug
  --workdir="$workdir" --config.data.num_packs="$devices"
  --config.optim.schedule=constant --config.save_every_steps=10
  --config.show_every_steps=1000000)
is_saved() { compgen -G "$workdir/checkpoints/*0/manifest.json" >/dev/null; }

"${train[@]}" --config.total_steps=1000000 >"$logs/first" 2>&1 &
until is_saved || ! kill -0 $! 2>/dev/null; do
  sleep 0.2
done
# It has ended by itself where another host was faster to kill its own.
kill -KILL $! 2>/dev/null || true
wait $! 2>/dev/null || true
is_saved || sleep 10  # the disk may tell this host later
again=(--config.mesh.sequence=$((devices % 2 ? 1 : 2)) --config.total_steps=40)
if ! is_saved; then
  told="FAIL  it ended before a checkpoint: see $logs/first"
elif ! "${train[@]}" "${again[@]}" >"$logs/second" 2>&1; then
  told="FAIL  it does not go on: see $logs/second"
elif ! told=$(grep -o 'resumed from step [0-9]*' "$logs/second"); then
  told="FAIL  it began anew: see $logs/second"
else
  told="pass  $told, with ${again[0]#--config.}"
fi
printf '%s  %-28s %s\n' "${told%%  *}" "save, kill, restore" "${told#*  }"
case $told in FAIL*) status=1 ;; esac
exit $status
