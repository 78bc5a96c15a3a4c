#!/usr/bin/env bash
# Every test of the CPU, those of the engine too, under the address, leak and undefined-behaviour
# sanitizers, in build/sanitize; `make test` does the layers without LibTorch. Usage:
#   sanitize.sh [CTEST_ARGUMENT...]   e.g. sanitize.sh -R '^nn$'
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
scripts/setup.sh
configure build/sanitize -DAMOEBA_SANITIZE=ON
build build/sanitize
test_sanitized build/sanitize --timeout 7200 "$@"
