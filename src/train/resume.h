// From a run to its checkpoint and back: which one to continue, what it holds, and what may not
// have changed in between.
#pragma once

#include <optional>

#include "base/file_system.h"
#include "base/log.h"
#include "formats/config.h"
#include "train/plain/checkpoint.h"
#include "train/setup.h"

namespace amoeba::train {

// The checkpoint that checkpoint.resume asks for, if any. Error(kUsage) when run.folder holds
// checkpoints that the run would bury, Error(kData) when none of several verifies.
std::optional<Checkpoint> find_resume_point(FileSystem& files, const RunConfig& config,
                                            const LogSink& log);

// Loads weights, optimizer and place in the data; returns the tokens seen. Error(kData) for another
// model or another text; a warning for every other setting that changed.
int64_t restore(const Checkpoint& checkpoint, Setup& setup, const formats::Schema& schema,
                const LogSink& log);

// Writes the state after `step` and returns the checkpoint's folder.
std::string save_state(FileSystem& files, Setup& setup, const formats::Schema& schema, int64_t step,
                       int64_t tokens_seen);

}  // namespace amoeba::train
