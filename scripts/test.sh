#!/usr/bin/env bash
# Every check of the tree. The main suite runs last, so that its summary ends the output.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
scripts/setup.sh

# What tests compare with; they are skipped without.
install_oracles() {
  local missing
  mapfile -t missing < <(.venv/bin/python scripts/missing_requirements.py scripts/requirements-oracles.txt)
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing packages that tests compare with: ${missing[*]}"
  .venv/bin/python -m pip install --disable-pip-version-check --retries 1 -q "${missing[@]}" >/dev/null 2>&1 ||
    say "pip could not install ${missing[*]}: the tests that compare with them are skipped"
}
install_oracles

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
test_sanitized build/asan

say "work on two threads, under the thread sanitizer"
configure build/tsan -DAMOEBA_ENGINE=OFF -DAMOEBA_SANITIZE_THREADS=ON
build build/tsan test_train_plain
build/tsan/tests/test_train_plain --gtest_brief=1 --gtest_filter='Background.*'

say "all tests"
.venv/bin/ctest --test-dir build --output-on-failure --no-tests=error
