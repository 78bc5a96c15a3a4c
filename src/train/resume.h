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
// another model, another tokenizer, another text, or a checkpoint of weights only; a warning for
// every other setting that changed.
int64_t restore(const Checkpoint& checkpoint, Setup& setup, Guard& guard,
                const formats::Schema& schema, const LogSink& log);

// A state in host memory, to be saved.
struct Snapshot {
  CheckpointContent content;        // without attached files
  std::vector<at::Tensor> storage;  // what its tensors point into
};

struct SnapshotOptions {
  bool weights_only = false;
  at::ScalarType dtype = at::kFloat;  // of the weights; the balance bias stays float
  bool copy = false;                  // of everything: training may go on
};

// Puts the state after `step` into `snapshot`, whose memory is used again.
void take_snapshot(Snapshot& snapshot, Setup& setup, const Guard& guard,
                   const formats::Schema& schema, int64_t step, int64_t tokens_seen,
                   const SnapshotOptions& options);

}  // namespace amoeba::train
