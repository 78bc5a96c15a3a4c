#include "campaign/campaign.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

namespace amoeba::test {

void report_failure(const std::string& trial, const std::string& why) {
  std::fprintf(stderr, "FAILED %s: %s\n", trial.c_str(), why.c_str());
}

namespace {

int64_t number(const std::vector<std::string>& arguments, size_t index, int64_t otherwise) {
  return index < arguments.size() ? std::atoll(arguments[index].c_str()) : otherwise;
}

std::string text(const std::vector<std::string>& arguments, size_t index) {
  return index < arguments.size() ? arguments[index] : "";
}

int64_t run(const std::vector<std::string>& a) {
  const std::string name = a.empty() ? "" : a[0];
  const auto seed = static_cast<uint64_t>(number(a, 2, 1));
  if (name == "kills") return kill_trials(number(a, 1, 1000), seed);
  if (name == "signals") return signal_trials(number(a, 1, 200), seed);
  if (name == "power") return power_trials(number(a, 1, 1), number(a, 2, 3), text(a, 3));
  if (name == "faults") return fault_trials(number(a, 1, 1), text(a, 2));
  if (name == "damage") {
    return damage_trials(number(a, 1, 10000), number(a, 2, 1000), number(a, 3, 1000), 1);
  }
  std::fprintf(stderr,
               "usage: campaign kills [COUNT [SEED]] | signals [COUNT [SEED]] | power [STRIDE "
               "[SEEDS [MODE]]] | faults [STRIDE [MODE]] | damage [FLIPS [CUTS [SWAPS]]]\n");
  return 1;
}

}  // namespace
}  // namespace amoeba::test

int main(int argc, char** argv) {
  try {
    return amoeba::test::run({argv + 1, argv + argc}) == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "campaign: %s\n", error.what());
    return 1;
  }
}
