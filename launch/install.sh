#!/usr/bin/env bash
# Makes .venv in the checkout and installs goku_jax with the extras named:
#   bash launch/install.sh [extra ...]
# PYTHON selects the interpreter (3.11 to 3.13). What is installed already,
# from the same setup.py, is left as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
    2>/dev/null
}

if ! "$python" -m pip --version >/dev/null 2>&1; then
  found=
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if supported "$candidate"; then
      found=$candidate
      break
    fi
  done
  if [ -z "$found" ]; then
    echo "install.sh: no Python 3.11 to 3.13 as ${PYTHON:-python3}; set PYTHON" \
      >&2
    exit 2
  fi
  "$found" -m venv .venv
fi
if ! supported "$python"; then
  echo "install.sh: .venv is not of Python 3.11 to 3.13; remove it" >&2
  exit 2
fi

# One stamp for each extra, named after the setup.py that it came from.
digest=$(cksum <setup.py | cut -d ' ' -f 1)
missing=
for extra in core "$@"; do
  [ -e ".venv/installed-$digest-$extra" ] || missing+=" $extra"
done
[ -n "$missing" ] || exit 0

echo "install.sh: installing$missing into .venv"
[ -x .venv/bin/uv ] || "$python" -m pip install --quiet uv

# uv does not read pip's settings: a local wheel or a mirror is passed on.
setting() { "$python" -m pip config get "$1" 2>/dev/null || true; }
links=${PIP_FIND_LINKS:-$(setting global.find-links)}
index=${PIP_INDEX_URL:-$(setting global.index-url)}
if [ -n "$links" ]; then
  links=$(echo $links | tr ' ' ',')
  export UV_FIND_LINKS=${UV_FIND_LINKS:-$links}
fi
if [ -n "$index" ]; then
  export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
fi

extras=$(IFS=,; echo "$*")
.venv/bin/uv pip install --quiet --python "$python" -e ".${extras:+[$extras]}"
for extra in core "$@"; do
  touch ".venv/installed-$digest-$extra"
done
