#!/usr/bin/env bash
# Makes an environment, once: scripts/setup.sh [run|dev|foundry]. Prints its Python on the last line.
#   run      .venv with what the README's commands need
#   dev      .venv with the test tools as well
#   foundry  LLM Foundry's own environment in the user's cache folder, under the hash of its requirements (about 7 GB)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
what=${1:-run}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Python 3.11 or newer is needed; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
  exit 1
}

hash_of() { cat "$@" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:16])'; }

# make FOLDER HASH PIP-ARGUMENTS...: a virtual environment, made again when HASH changes; whole when its stamp is there
make() {
  local folder=$1 hash=$2
  shift 2
  if [ "$(cat "$folder/.openlm-stamp" 2>/dev/null)" != "$hash" ]; then
    echo "setup: making $folder (a few minutes the first time)" >&2
    [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
    rm -f "$folder/.openlm-stamp"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
    echo "$hash" >"$folder/.openlm-stamp"
  fi
  echo "$folder/bin/python"
}

case $what in
  run | dev)
    file=requirements.txt
    # an environment made for `dev` serves `run` as well
    dev_hash=dev-$(hash_of "$root/requirements.txt" "$root/requirements-dev.txt" "$root/constraints.txt")
    hash=run-$(hash_of "$root/requirements.txt" "$root/constraints.txt")
    [ "$what" = dev ] && file=requirements-dev.txt && hash=$dev_hash
    [ "$(cat "$root/.venv/.openlm-stamp" 2>/dev/null)" = "$dev_hash" ] && hash=$dev_hash
    make "$root/.venv" "$hash" -r "$root/$file" -c "$root/constraints.txt"
    ;;
  foundry)
    hash=$(hash_of "$root/requirements-foundry.txt")
    cache=${OPENLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/open_lm}
    mkdir -p "$cache"
    make "$cache/foundry-$hash" "$hash" -r "$root/requirements-foundry.txt"
    ;;
  *)
    echo "setup: $what: choose run, dev or foundry" >&2
    exit 2
    ;;
esac
