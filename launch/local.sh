#!/usr/bin/env bash
# Runs a job of goku_jax here, on eight pretend CPU devices:
#   bash launch/local.sh [--dry_run] -- JOB [ARGUMENT ...]
#   bash launch/local.sh -- train --config=configs/digits.py:debug --workdir=W
# Paths count from the checkout.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
options "" "" "$@"

# The last of two values of a flag holds.
flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=8"
run bash launch/install.sh
run exec env JAX_PLATFORMS=cpu XLA_FLAGS="${flags# }" "${command[@]}"
