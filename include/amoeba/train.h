// One training run from a configuration: what `amoeba train` calls.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/file_system.h"
#include "base/log.h"
#include "formats/config.h"
#include "train/plain/progress.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// What the caller lends to a run. All but `files` is used from the calling thread only.
struct RunContext {
  FileSystem& files;  // with checkpoint.async_mode from another thread too
  Progress& progress;
  LogSink log;
  std::function<bool()> stop_requested;  // e.g. after SIGTERM: finish the step, save, return
  std::string command;                   // recorded in the report
  // Seconds since the program began, for run.max_wall_minutes; empty: since the run began.
  std::function<double()> wall_seconds = {};
};

struct RunSummary {
  int64_t step = 0;
  bool stopped = false;        // by stop_requested or run.max_wall_minutes, before the last step
  double validation_loss = 0;  // nats a token; NaN when nothing was evaluated
  double bits_per_byte = 0;    // NaN when nothing was evaluated
  double train_seconds = 0;    // steps only, without set-up, evaluation and saving
  double tokens_per_second = 0;
  std::string sample;
  std::string checkpoint;  // folder of the last one; empty when none was written
  std::string report;      // path; empty when off
};

// Trains until training.steps. `schema` is config's, for the record of what was set where.
// A save that fails is a warning, the last one of a session an error.
// Errors: kUsage (contradictions, unknown backend), kData (files), kNumeric (too many rejected
// steps one after the other; the last good state is saved first).
RunSummary train(const RunConfig& config, const formats::Schema& schema, RunContext& context);

}  // namespace amoeba::train
