#!/usr/bin/env bash
# Makes the environment and runs every test:
#   bash launch/test.sh [--slow] [--parity] [--tpu] [--device] [pytest argument ...]
#   --slow    the slow tests too
#   --parity  comparisons with torch too (installs the extra `parity`)
#   --tpu     ahead-of-time compiles for TPUs too (installs the extra `tpu`)
#   --device  tests that need an accelerator too, on JAX's default platform
# PYTHON selects the interpreter; WORKERS the number of processes: by default as
# many as there are cores, 4 at most, which take 5 GB each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=(dev)
for argument in "$@"; do
  case $argument in
    --parity) extras+=(parity) ;;
    --tpu) extras+=(tpu) ;;
    -h | --help)
      sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' launch/test.sh
      exit 0
      ;;
  esac
done
bash launch/install.sh "${extras[@]}"
cores=$(nproc)
workers=${WORKERS:-$((cores < 4 ? cores : 4))}
exec .venv/bin/python -m pytest -n "$workers" --dist worksteal "$@"
