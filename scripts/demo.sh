#!/usr/bin/env bash
# Trains the demo model on the King James Bible and shows what came out.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
text=build/data/kjv.txt
text_sha256=82fa5f3788c6a9a010fb128a0f0bf588984b5888a82058520620eded59b033ea
run=runs/demo

scripts/build.sh amoeba

if ! echo "$text_sha256  $text" | sha256sum --check --status 2>/dev/null; then
  command -v bible >/dev/null || die "the program bible is missing: install the package bible-kjv"
  say "writing the text to $text"
  mkdir -p "$(dirname "$text")"
  env -u COLUMNS bible gen1:1-rev22:21 </dev/null >"$text"  # it wraps lines at COLUMNS
  echo "$text_sha256  $text" | sha256sum --check --status ||
    say "warning: $text differs from the text that the published numbers were measured on"
fi

if [ -e "$run" ]; then
  say "moving the last run to $run.previous"
  rm -rf "$run.previous"
  mv "$run" "$run.previous"
fi
build/amoeba train --config demo --data.path "$text" --run.folder "$run"
say "the run is in $run:"
find "$run" -maxdepth 2 | sort
