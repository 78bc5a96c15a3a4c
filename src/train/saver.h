// Saves a run's state, in the background where the configuration says so.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "base/file_system.h"
#include "formats/config.h"
#include "train/plain/background.h"
#include "train/plain/checkpoint.h"
#include "train/plain/metrics.h"
#include "train/resume.h"
#include "train/setup.h"

namespace amoeba::train {

struct SaveOutcome {
  CheckpointRecord record;  // its wait_seconds are the caller's to measure
  std::string prune_error;  // why no older checkpoint was removed; empty: nothing failed
};

class CheckpointSaver {
 public:
  // All must outlive it.
  CheckpointSaver(FileSystem& files, Setup& setup, const Guard& guard,
                  const formats::Schema& schema);

  // Copies the state after `step` and begins to write it. Nothing may be under way.
  void start(int64_t step, int64_t tokens_seen);
  bool under_way() const { return work_.started(); }  // until finish()
  bool done() const { return work_.started() && work_.done(); }
  // Waits for the end. A failing disk is in the outcome; every checkpoint that was there still is.
  SaveOutcome finish();

 private:
  void write();

  FileSystem& files_;
  Setup& setup_;
  const Guard& guard_;
  const formats::Schema& schema_;
  std::vector<AttachedFile> tokenizer_files_;
  Clock clock_;
  Snapshot snapshot_;
  SaveOutcome outcome_;
  BackgroundWork work_;  // last: it uses the others until it ends
};

}  // namespace amoeba::train
