# Sourced by the scripts beside it: starts in the repository root, stops at the first failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# pip and ccache keep their caches under HOME, and misplace them when it is empty.
if [ -z "${HOME:-}" ]; then
  HOME="$PWD/build/home"
  export HOME
  mkdir -p "$HOME"
fi

say() { echo "== $*"; }

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# LibTorch sources take up to 1 GiB each to compile, links more.
build_jobs() {
  local kib limit jobs
  kib=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)  # the container's share
  if [ "$limit" != max ] && [ $((limit / 1024)) -lt "$kib" ]; then
    kib=$((limit / 1024))
  fi
  jobs=$((kib / (2 * 1024 * 1024)))
  [ "$jobs" -le "$(nproc)" ] || jobs=$(nproc)
  [ "$jobs" -ge 1 ] || jobs=1
  echo "$jobs"
}

# configure FOLDER OPTION...: CMake, anew when the folder was configured for another place or generator.
configure() {
  local folder=$1 fresh=()
  shift
  grep -qsxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$folder/CMakeCache.txt" &&
    grep -qsxF "CMAKE_GENERATOR:INTERNAL=Ninja" "$folder/CMakeCache.txt" || fresh=(--fresh)
  say "configuring $folder"
  .venv/bin/cmake "${fresh[@]}" -G Ninja -S . -B "$folder" -DAMOEBA_PYTHON="$PWD/.venv/bin/python" "$@"
}

# build FOLDER TARGET...
build() {
  local folder=$1 jobs started=$SECONDS
  shift
  jobs=$(build_jobs)
  say "building ${*:-everything} in $folder with $jobs jobs (a first build takes minutes)"
  .venv/bin/cmake --build "$folder" -j "$jobs" ${1:+--target "$@"}
  say "built $folder in $((SECONDS - started)) s"
}

# test_sanitized FOLDER CTEST_ARGUMENT...: under the address, leak and undefined-behaviour sanitizers,
# which halt on the first report.
test_sanitized() {
  local folder=$1
  shift
  LSAN_OPTIONS="suppressions=$PWD/scripts/leaks.txt:print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1 \
    .venv/bin/ctest --test-dir "$folder" --output-on-failure --no-tests=error "$@"
}
