#!/bin/sh
# Builds test_kernels for 64-bit Arm and runs it under qemu's user emulation. Exits 77, saying what is
# missing, where the cross compiler, qemu or googletest's sources are not installed.
# Usage: scripts/test_neon.sh [BUILD_FOLDER [CMAKE [GOOGLETEST_ARGUMENT ...]]]
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/neon}
cmake=${2:-cmake}
shift $(($# < 2 ? $# : 2))
compiler=aarch64-linux-gnu-g++
gtest=/usr/src/googletest/googletest

missing=""
command -v "$compiler" > /dev/null || missing="$missing g++-aarch64-linux-gnu"
emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)
[ -n "$emulator" ] || missing="$missing qemu-user"
[ -f "$gtest/src/gtest-all.cc" ] || missing="$missing googletest"
if [ -n "$missing" ]; then
  echo "test_neon: skipped, these Debian packages are missing:$missing"
  exit 77
fi

"$cmake" -G Ninja -S . -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER="$compiler" -DAMOEBA_ENGINE=OFF -DAMOEBA_TESTS=OFF -DAMOEBA_CUDA=OFF > "$build.log" 2>&1 \
  || { cat "$build.log"; exit 1; }
"$cmake" --build "$build" --target amoeba_kernels_cuda

mkdir -p "$build/tests"
sources="tests/kernels/*.cpp tests/support/kernels/*.cpp tests/support/*.cpp $gtest/src/gtest-all.cc $gtest/src/gtest_main.cc"
# shellcheck disable=SC2086  # patterns and words
for source in $sources; do
  object=$build/tests/$(basename "$source").o
  if [ -z "$(find "$object" -newer "$source" 2> /dev/null)" ]; then echo "$source $object"; fi
done | xargs -r -P 2 -L 1 sh -c \
  "$compiler -std=c++20 -O2 -Wall -Wextra -Werror -Wno-psabi -Iinclude -Isrc -Itests -I$gtest -I$gtest/include -c \$0 -o \$1"
"$compiler" -static "$build"/tests/*.o "$build"/src/libamoeba_kernels_cuda.a "$build"/src/libamoeba_kernels.a \
  "$build"/src/libamoeba_base.a -o "$build/test_kernels"
"$emulator" "$build/test_kernels" "$@"
