// From a run to its checkpoint and back: which one to continue, what it holds, and what may not
// have changed in between.
#pragma once

#include <optional>

#include "base/file_system.h"
#include "base/log.h"
#include "formats/config.h"
#include "train/plain/checkpoint.h"
#include "train/plain/guard.h"
#include "train/setup.h"

namespace amoeba::train {

// The checkpoint that checkpoint.resume asks for, if any. Error(kUsage) when run.folder holds
// checkpoints that the run would bury, Error(kData) when none of several verifies.
std::optional<Checkpoint> find_resume_point(FileSystem& files, const RunConfig& config,
                                            const LogSink& log);

// The newest checkpoint of run.folder that verifies and is from before `step`; where pruning left
// none, the oldest that verifies. Only those of checkpoint.interval count: a run that was stopped
// and resumed has others, and must do as one that was not.
std::optional<Checkpoint> find_rollback_point(FileSystem& files, const RunConfig& config,
                                              int64_t step, const LogSink& log);

// Loads weights, optimizer, place in the data and guard; returns the tokens seen. Error(kData) for
// another model or another text; a warning for every other setting that changed.
int64_t restore(const Checkpoint& checkpoint, Setup& setup, Guard& guard,
                const formats::Schema& schema, const LogSink& log);

// Writes the state after `step` and returns the checkpoint's folder.
std::string save_state(FileSystem& files, Setup& setup, const Guard& guard,
                       const formats::Schema& schema, int64_t step, int64_t tokens_seen);

}  // namespace amoeba::train
