#!/usr/bin/env bash
# Every check of the tree. The main suite runs last, so that its summary ends the output.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
scripts/setup.sh

if [ -e .git ]; then
  say "whitespace of tracked files"
  git --no-pager diff --check "$(git hash-object -t tree /dev/null)"
  say "Python files compile"
  git ls-files -z '*.py' | xargs -0r .venv/bin/python -c '
import sys
for path in sys.argv[1:]:
    compile(open(path, "rb").read(), path, "exec")'
  say "format of C++ files"
  git ls-files -z '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -0r .venv/bin/clang-format --dry-run -Werror ||
    die "format the files named above with .venv/bin/clang-format -i"
else
  say "no git checkout: whitespace and format are not checked"
fi

scripts/build.sh

say "layers without LibTorch, under address and undefined-behaviour sanitizers"
configure build/asan -DAMOEBA_ENGINE=OFF -DAMOEBA_SANITIZE=ON
build build/asan
.venv/bin/ctest --test-dir build/asan --output-on-failure --no-tests=error

say "all tests"
.venv/bin/ctest --test-dir build --output-on-failure --no-tests=error
