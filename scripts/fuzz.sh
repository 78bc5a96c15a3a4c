#!/usr/bin/env bash
# Fuzzes every target of fuzz/ with libFuzzer: a build without sanitizers explores, one with both judges what was found
# and fuzzes on. Usage: fuzz.sh [SECONDS [TARGET...]]
#   SECONDS  for each target (60), two thirds of them without sanitizers
# Needs clang++ 14 or later. What was found interesting stays in build/corpus, what broke in build/crashes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
command -v clang++ >/dev/null || die "clang++ is missing: install the package clang"
seconds=${1:-60}
shift $(($# > 0 ? 1 : 0))
[ -x .venv/bin/cmake ] || scripts/setup.sh
for sanitize in OFF ON; do
  configure "build/fuzz_$sanitize" -DCMAKE_CXX_COMPILER=clang++ -DAMOEBA_ENGINE=OFF -DAMOEBA_TESTS=OFF \
    -DAMOEBA_SANITIZE=$sanitize -DAMOEBA_FUZZ=ON
  build "build/fuzz_$sanitize" amoeba_fuzz
done
targets=$("$PWD/build/fuzz_ON/fuzz/amoeba_fuzz" seeds build/corpus)

# fuzz SANITIZE SECONDS TARGET: a limit of 10 s (of a machine that may be busy) and of 64 MiB an allocation.
fuzz() {
  local crashes=build/crashes/$3 log
  log=$crashes/log_$1
  mkdir -p "$crashes"
  if ! "build/fuzz_$1/fuzz/amoeba_fuzz" "$3" -max_total_time="$2" -max_len=4096 -timeout=10 -malloc_limit_mb=64 \
    -entropic=0 -artifact_prefix="$crashes/" -print_final_stats=1 "build/corpus/$3" >"$log" 2>&1; then
    say "$3: FAILED, see $log"
    failed=1
    return
  fi
  say "$3, sanitizers $1: $(grep -aoE 'executed_units: *[0-9]+' "$log" | grep -oE '[0-9]+$') executions, nothing found"
}

# A small quarantine of freed memory and short stacks: fuzzing is several times faster.
export ASAN_OPTIONS=quarantine_size_mb=8:malloc_context_size=4
failed=0
for target in ${*:-$targets}; do
  fuzz OFF $((seconds * 2 / 3)) "$target"
  fuzz ON $((seconds - seconds * 2 / 3)) "$target"
done
exit "$failed"
