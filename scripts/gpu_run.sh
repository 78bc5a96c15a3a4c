#!/usr/bin/env bash
# Runs a program of this folder (default: amoeba) on the torch that is installed on this machine.
#
# Usage: run.sh train --config demo ...     run.sh ./test_nn ...     run.sh ./step_times.py ...
# TORCH_LIB names the lib folder of torch; unset, python3 (or PYTHON) is asked.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${TORCH_LIB:-}" ]; then
  TORCH_LIB=$("${PYTHON:-python3}" -c '
import importlib.util as u
spec = u.find_spec("torch")
print(list(spec.submodule_search_locations)[0] + "/lib" if spec else "")')
fi
wanted=$(cat "$here/torch_version")
found=$(sed -n "s/^__version__ = '\([0-9]*\.[0-9]*\).*/\1/p" "$TORCH_LIB/../version.py" 2>/dev/null || true)
if [ "$found" != "$wanted" ]; then
  echo "run.sh: found torch '${found:-none}' at '$TORCH_LIB', want $wanted.x (set PYTHON or TORCH_LIB)" >&2
  exit 2
fi
export PYTHONPATH="$here/python${PYTHONPATH:+:$PYTHONPATH}"
export LD_LIBRARY_PATH="$here/python/amoeba:$TORCH_LIB${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
case "${1:-}" in
  ./test_*) program=$here/${1#./}; shift ;;
  ./*.py)
    script=$here/${1#./}
    shift
    exec "${PYTHON:-python3}" "$script" "$@" ;;
  *) program=$here/amoeba ;;
esac
exec "$program" "$@"
