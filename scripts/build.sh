#!/usr/bin/env bash
# Configures and builds everything into build/. Usage: build.sh [TARGET...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
scripts/setup.sh

configure build
build build "$@"
