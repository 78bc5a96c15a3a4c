#!/usr/bin/env bash
# Trains the demo model on the King James Bible; the run ends with the paths of what it wrote.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run=runs/demo

scripts/build.sh amoeba
scripts/demo_text.sh
if [ -e "$run" ]; then
  say "moving the last run to $run.previous"
  rm -rf "$run.previous"
  mv "$run" "$run.previous"
fi
build/amoeba train --config demo --data.path build/data/kjv.txt --run.folder "$run"
