#!/usr/bin/env bash
# Fuzzes every target of fuzz/ with libFuzzer under both sanitizers. Usage: fuzz.sh [SECONDS [TARGET...]]
#   SECONDS  for each target (60)
# Needs clang++ 14 or later. What was found interesting stays in build/corpus, what broke in build/crashes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
command -v clang++ >/dev/null || die "clang++ is missing: install the package clang"
seconds=${1:-60}
shift $(($# > 0 ? 1 : 0))
[ -x .venv/bin/cmake ] || scripts/setup.sh
configure build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DAMOEBA_ENGINE=OFF -DAMOEBA_TESTS=OFF \
  -DAMOEBA_SANITIZE=ON -DAMOEBA_FUZZ=ON
build build/fuzz amoeba_fuzz
fuzz=$PWD/build/fuzz/fuzz/amoeba_fuzz
targets=$("$fuzz" seeds build/corpus)

failed=0
for target in ${*:-$targets}; do
  mkdir -p "build/crashes/$target"
  # A limit of 1 s and 64 MiB for files of up to 64 KiB.
  if "$fuzz" "$target" -max_total_time="$seconds" -max_len=65536 -timeout=1 -malloc_limit_mb=64 \
    -artifact_prefix="build/crashes/$target/" -print_final_stats=1 "build/corpus/$target" \
    >"build/crashes/$target/log" 2>&1; then
    say "$target: $(grep -oE 'stat::number_of_executed_units: *[0-9]+' "build/crashes/$target/log" | grep -oE '[0-9]+$') executions, nothing found"
  else
    say "$target: FAILED, see build/crashes/$target/log"
    failed=1
  fi
done
exit "$failed"
