#!/usr/bin/env bash
# Long trials of what a run survives; `make test` runs a small part of each. One line a campaign:
#   scripts/campaign.sh            all of them, about an hour
#   scripts/campaign.sh kills      those whose line begins so
#   scripts/campaign.sh fuzz [SECONDS]   damaged files, SECONDS for each kind (60)
#   scripts/campaign.sh sanitizers [CTEST_ARGUMENT...]   every test of the CPU under the sanitizers
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [ "${1:-}" = fuzz ]; then exec scripts/fuzz.sh "${2:-60}"; fi
if [ "${1:-}" = sanitizers ]; then exec scripts/sanitize.sh "${@:2}"; fi
[ -x build/tests/campaign ] || scripts/build.sh
export OMP_WAIT_POLICY=passive

campaigns=(
  "kills 1000"
  "signals 200"
  "power 1 3"
  "faults 1"
  "damage 10000 1000 1000"
)

for campaign in "${campaigns[@]}"; do
  [[ "$campaign" == "${1:-}"* ]] || continue
  say "campaign $campaign"
  read -ra arguments <<<"$campaign"
  build/tests/campaign "${arguments[@]}"
done
