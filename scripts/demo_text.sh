#!/usr/bin/env bash
# Writes the demo's text, the King James Bible, to build/data/kjv.txt unless it is there.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
text=build/data/kjv.txt
sha256=82fa5f3788c6a9a010fb128a0f0bf588984b5888a82058520620eded59b033ea

matches() { echo "$sha256  $text" | sha256sum --check --status 2>/dev/null; }

if ! matches; then
  command -v bible >/dev/null || die "the program bible is missing: install the package bible-kjv"
  say "writing the text to $text"
  mkdir -p "$(dirname "$text")"
  env -u COLUMNS bible gen1:1-rev22:21 </dev/null >"$text"  # it wraps lines at COLUMNS
  matches || say "warning: $text is not the text that the published numbers were measured on"
fi
