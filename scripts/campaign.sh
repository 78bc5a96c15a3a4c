#!/usr/bin/env bash
# Long trials of what a run survives; `make test` runs a small part of each.
#   scripts/campaign.sh fuzz [SECONDS]   damaged files, SECONDS for each kind (60)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
  fuzz) scripts/fuzz.sh "${2:-60}" ;;
  *) die "unknown campaign '${1:-}' (want fuzz)" ;;
esac
