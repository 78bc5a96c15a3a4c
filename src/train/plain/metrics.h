// What a run writes down while it trains: one JSON object a line in `metrics.jsonl`, appended, so
// that a crash costs at most the line being written. docs/metrics.md describes the lines for users.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.h"
#include "formats/value.h"

namespace amoeba::train {

// A number that was not measured, or was not finite: null in the file.
inline constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

struct ExpertLoad {
  int64_t layer = 0;
  std::vector<int64_t> load;  // [E] routed rows of each expert in this step
};

// Largest load over the mean load: 1 is balanced, E is one expert taking all. kMissing for no rows.
double max_over_mean(const ExpertLoad& experts);
int64_t num_empty(const ExpertLoad& experts);

struct StepRecord {
  int64_t step = 0;
  double loss = kMissing;
  double grad_norm = kMissing;
  double lr = kMissing;
  double tokens_per_second = kMissing;
  double step_seconds = kMissing;
  double data_seconds = kMissing;  // of step_seconds, spent waiting for data
  double tflops = kMissing;
  double mfu = kMissing;  // per cent; kMissing when the device's peak is unknown
  int64_t memory_bytes = 0;
  int64_t memory_reserved_bytes = 0;
  int64_t memory_peak_bytes = 0;
  double memory_percent = kMissing;  // peak over the device's memory
  int64_t tokens_seen = 0;
  bool rejected = false;  // the optimizer kept the old state
  double aux_loss = kMissing;
  double z_loss = kMissing;
  int64_t dropped_rows = 0;
  double padding_ratio = kMissing;
  int64_t expert_calls = 0;  // of the expert backend since the last record, like the four around it
  int64_t host_syncs = 0;
  int64_t saved_bytes = 0;
  std::vector<ExpertLoad> experts;  // one a MoE layer
};

// The worst layer's max_over_mean; kMissing when no layer has rows.
double worst_max_over_mean(const StepRecord& record);

struct ValidationRecord {
  int64_t step = 0;
  double loss = kMissing;
  double bits_per_byte = kMissing;
  int64_t windows = 0;
};

// One save, written when it is done: the checkpoint is on disk.
struct CheckpointRecord {
  int64_t step = 0;
  std::string folder;  // empty: it failed
  std::string error;   // why; empty otherwise
  bool weights_only = false;
  int64_t bytes = 0;               // of tensors
  double seconds = kMissing;       // from the copy of the state to the end
  double wait_seconds = kMissing;  // of them, that training stood still
};

struct StartRecord {
  int64_t step = 0;  // steps already done: 0, or the step of the checkpoint resumed from
  std::string version;
  std::string command;
  formats::Value config;  // the resolved configuration, an object
  std::string backend;
  std::string backend_reason;
  std::string device;
  formats::Object machine;  // further facts by name: processor, threads, versions of libraries
  int64_t params_total = 0;
  int64_t params_active = 0;
  int64_t flops_per_token = 0;
};

// What the guard did: a step that it rejected, or the run's way back to a checkpoint.
struct GuardRecord {
  int64_t step = 0;
  std::string action;  // "skip" or "rollback"
  std::string reason;
  int64_t to_step = 0;  // of a roll-back; of a skip the step itself
};

struct EndRecord {
  int64_t step = 0;
  std::string reason;  // "completed", "stopped by SIGTERM", ...
  std::string prompt;
  std::string sample;
  std::string checkpoint;
  double seconds = kMissing;  // of this session, from its start record
};

formats::Value to_value(const StepRecord& record);
formats::Value to_value(const ValidationRecord& record);
formats::Value to_value(const CheckpointRecord& record);
formats::Value to_value(const StartRecord& record);
formats::Value to_value(const GuardRecord& record);
formats::Value to_value(const EndRecord& record);

// Appends one line a record, each handed to the system whole and at once.
class MetricsWriter {
 public:
  // Cuts off what a crash in an earlier session spoiled: a torn last line, and all from the first
  // line on with a NUL byte, where a block never reached the disk.
  MetricsWriter(FileSystem& files, const std::string& path);

  template <typename Record>
  void write(const Record& record) {
    write_line(to_value(record));
  }
  void close();  // makes the lines durable and reports late errors

 private:
  void write_line(const formats::Value& value);
  std::unique_ptr<WritableFile> file_;
};

// One training run, over all its sessions. Steps and validations ascend and are unique.
struct RunHistory {
  std::vector<StartRecord> starts;  // one a session
  std::vector<StepRecord> steps;
  std::vector<ValidationRecord> validations;
  std::vector<CheckpointRecord> checkpoints;  // saved or failed, the last of each step
  std::vector<GuardRecord> guard;             // in the order in which they happened
  std::vector<EndRecord> ends;                // of the sessions that ended in order
};

// A start record supersedes the steps, validations, checkpoints and guard records after its own
// step (all of the file for step 0), a roll-back the first three after the step it goes back to;
// otherwise the last record of a step wins. A last line without line feed is torn and ignored;
// anything else that is not a record is Error(kData) "PATH:LINE: reason".
RunHistory parse_metrics(std::string_view text, const std::string& path);
RunHistory read_metrics(FileSystem& files, const std::string& path);

}  // namespace amoeba::train
