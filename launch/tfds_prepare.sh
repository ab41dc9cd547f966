#!/usr/bin/env bash
# Builds a TFDS set as array_record, which training reads without TensorFlow:
#   bash launch/tfds_prepare.sh NAME [DATA_DIR]
# NAME is a set of TFDS (imagenet2012, ucf101/ucf101_1_256, ...) or the folder of
# a builder of your own, NAME/NAME_dataset_builder.py. DATA_DIR is TFDS_DATA_DIR
# or ~/tensorflow_datasets if left out. TensorFlow goes into .venv-tfds, away
# from JAX; PYTHON selects the interpreter (3.11 to 3.13). What is built already
# is left as it is. Sets that need more say so: install it into .venv-tfds.
set -euo pipefail
if [ $# -eq 0 ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
name=$1
data_dir=${2:-${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}}
venv=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv-tfds

if [ ! -e "$venv/installed" ]; then
  echo "tfds_prepare.sh: installing TensorFlow into $venv"
  "${PYTHON:-python3}" -m venv "$venv"
  echo '*' >"$venv/.gitignore"
  "$venv/bin/python" -m pip install --quiet \
    "tensorflow-cpu>=2.20,<3" "tensorflow-datasets>=4.9.10,<5" \
    importlib_resources  # which etils forgets
  touch "$venv/installed"
fi

export CUDA_VISIBLE_DEVICES= TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
"$venv/bin/python" - "$name" "$data_dir" <<'EOF'
import importlib
import os
import sys

import tensorflow_datasets as tfds

name, data_dir = sys.argv[1], os.path.abspath(sys.argv[2])
options = dict(data_dir=data_dir, file_format="array_record")
if os.path.isdir(name):
  parent, name = os.path.split(os.path.abspath(name))
  sys.path.insert(0, parent)
  module = importlib.import_module(f"{name}.{name}_dataset_builder")
  builder = module.Builder(**options)
else:
  builder = tfds.builder(name, **options)
builder.download_and_prepare()
splits = " ".join(f"{k} ({s.num_examples})" for k, s in builder.info.splits.items())
print(f"tfds_prepare.sh: built {splits}; use tfds:{name}:SPLIT@{data_dir}")
EOF
