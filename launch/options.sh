# What the launchers share; they source it, and stand in the checkout then:
#   options "NEEDED ..." "OPTIONAL ..." "$@"
# --NAME=VALUE becomes the variable NAME, empty where it was not given, and the
# job that follows -- the array `command`. `run` does a command, or with
# --dry_run prints it, quoted.
launcher=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "$(basename "$launcher"): $*" >&2
  exit 2
}

options() {
  local needed=$1 optional=$2 option path
  shift 2
  dry_run=
  for option in $needed $optional; do
    printf -v "$option" ''
  done
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    option=${1%%=*}
    option=${option#--}
    case "$1 $needed $optional " in
      --dry_run\ *) dry_run=1 ;;
      -h\ * | --help\ *)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$launcher"
        exit 0
        ;;
      --*=*" $option "*) printf -v "$option" %s "${1#*=}" ;;
      *) fail "$1 is none of its options; see --help (a job goes after --)" ;;
    esac
    shift
  done
  for option in $needed; do
    [ -n "${!option}" ] || fail "missing --$option=...; --help explains"
  done
  [ $# -gt 1 ] || fail "missing a job, as: -- train --config=..."
  path=goku_jax/${2//.//}
  [ -e "$path/__main__.py" ] || [ -e "$path.py" ] ||
    fail "there is no job goku_jax.$2: name one as train"
  command=(.venv/bin/python -m "goku_jax.$2" "${@:3}")
}

# A count that was left out is 1.
count() {
  printf -v "$1" %s "${!1:-1}"
  [[ ${!1} =~ ^[1-9][0-9]*$ ]] ||
    fail "--$1=${!1} is no whole number of 1 or more"
}

# From --topology, as plan names it: generation and chips, and what Google calls
# it: shape (4x8x8 for 8x8x4) and type (of cores, where a chip has two).
read_topology() {
  [[ $topology =~ ^(v4|v5e|v5p|v6e|tpu7x):([1-9][0-9]*(x[1-9][0-9]*)+)$ ]] ||
    fail "--topology=$topology is none: name one as v5p:8x8x4, as for plan"
  generation=${BASH_REMATCH[1]} shape=${BASH_REMATCH[2]}
  chips=$((${shape//x/*}))
  shape=$(tr x '\n' <<<"$shape" | sort -n | paste -s -d x -)
  case $generation in
    v5e) type=v5litepod-$chips ;;
    v6e) type=v6e-$chips ;;
    *) type=$generation-$((2 * chips)) ;;
  esac
}

# A command as one line that any shell reads back.
quote() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# The same for a container, where Kubernetes reads $$ as $.
quote_in_pod() {
  local line
  line="exec $(quote "$@")"  # so that the job itself receives SIGTERM
  printf '%s\n' "${line//\$/\$\$}"
}

run() {
  if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi
}
