// Long trials of what a run survives. Each prints one line of figures and returns how many of its
// trials broke a promise; each such trial is named on standard error first.
#pragma once

#include <cstdint>
#include <string>

namespace amoeba::test {

// A process that trains is killed (SIGKILL) at random times, resumed and killed again.
int64_t kill_trials(int64_t count, uint64_t seed);
// The same with SIGTERM or SIGINT, one or two of them.
int64_t signal_trials(int64_t count, uint64_t seed);
// Power is lost at every `stride`-th operation of a small run, in each way, with `num_seeds` seeds;
// with one checkpoint.async_mode, or, when `async_mode` is empty, with each.
int64_t power_trials(int64_t stride, int64_t num_seeds, const std::string& async_mode);
// Every `stride`-th operation of a small run fails, with each reason.
int64_t fault_trials(int64_t stride, const std::string& async_mode);
// Bits of a checkpoint flip, files are cut, shards change places.
int64_t damage_trials(int64_t num_flips, int64_t num_cuts, int64_t num_swaps, uint64_t seed);

// Says which trial failed, and why.
void report_failure(const std::string& trial, const std::string& why);

}  // namespace amoeba::test
