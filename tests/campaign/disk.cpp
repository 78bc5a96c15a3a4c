// A small run in memory whose disk fails or loses power at one of its operations; afterwards the
// run is resumed on a disk that works and must end with the bits of a run without faults.
#include <cstdio>
#include <functional>

#include "amoeba/error.h"
#include "campaign/campaign.h"
#include "support/faults.h"
#include "train/lab.h"
#include "train/plain/metrics.h"

namespace amoeba::test {
namespace {

train::RunConfig tiny_config(const std::string& async_mode) {
  train::RunConfig config = small_config();
  config.model.num_layers = 1;
  config.training.steps = 4;
  config.training.num_threads = 1;
  config.training.global_batch_size = 4;
  config.checkpoint.interval = 1;
  config.checkpoint.keep_latest_k = 2;
  config.checkpoint.async_mode = async_mode;
  config.metrics.report = true;
  config.validation.max_windows = 1;
  return config;
}

// One run with a fault, and what has to hold after it.
class DiskTrials {
 public:
  explicit DiskTrials(const std::string& async_mode) : config_(tiny_config(async_mode)) {
    Lab lab;
    FaultyFileSystem counting(lab.files);
    want_ = lab.contents(lab.run(config_, &counting).checkpoint);
    num_operations_ = counting.num_operations();
  }

  void trial(const std::string& name, const std::function<void(FaultyFileSystem&)>& plan,
             const std::function<void(MemoryFileSystem&)>& reboot) {
    ++num_trials_;
    Lab lab;
    lab.files.corrupt("/text.txt", some_text());  // durable, as its name is then
    lab.files.sync_directory("/");
    FaultyFileSystem faulty(lab.files);
    plan(faulty);
    try {
      lab.run(config_, &faulty);
      ++num_completed_;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kData) fail_trial(name, error.what());
    } catch (const PowerLoss&) {
    }
    const int64_t committed = last_committed(lab.files);
    if (reboot) reboot(lab.files);
    try {
      const train::LatestCheckpoint latest = train::load_latest_checkpoint(lab.files, "/run");
      for (const std::string& reason : latest.skipped) fail_trial(name, reason);
      const int64_t step = latest.checkpoint ? latest.checkpoint->step : -1;
      if (step < committed) {
        fail_trial(name, cat("step ", committed, " was saved, the newest is ", step));
      }
      train::RunConfig again = config_;
      again.checkpoint.resume = "auto";
      if (lab.contents(lab.run(again).checkpoint) != want_) {
        fail_trial(name, "the resumed run ends with other bits");
      }
    } catch (const Error& error) {
      fail_trial(name, cat("after the fault: ", error.what()));
    }
  }

  int64_t num_operations() const { return num_operations_; }
  int64_t num_trials() const { return num_trials_; }
  int64_t num_completed() const { return num_completed_; }
  int64_t num_failed() const { return num_failed_; }

 private:
  void fail_trial(const std::string& name, const std::string& why) {
    ++num_failed_;
    report_failure(name, why);
  }

  static int64_t last_committed(FileSystem& files) {
    int64_t step = -1;
    if (!files.exists("/run/metrics.jsonl")) return step;
    for (const auto& record : train::read_metrics(files, "/run/metrics.jsonl").checkpoints) {
      if (record.error.empty()) step = std::max(step, record.step);
    }
    return step;
  }

  train::RunConfig config_;
  std::map<std::string, std::string> want_;
  int64_t num_operations_ = 0;
  int64_t num_trials_ = 0, num_completed_ = 0, num_failed_ = 0;
};

// The values of checkpoint.async_mode to try.
std::vector<std::string> modes(const std::string& only) {
  if (!only.empty()) return {only};
  return {"disabled", "async"};
}

}  // namespace

int64_t power_trials(int64_t stride, int64_t num_seeds, const std::string& async_mode) {
  struct Way {
    Survival survival;
    const char* name;
  };
  const Way ways[] = {{Survival::kSyncedOnly, "drop"},
                      {Survival::kReordered, "reorder"},
                      {Survival::kTorn, "tear"}};
  int64_t failed = 0;
  for (const std::string& mode : modes(async_mode)) {
    DiskTrials trials(mode);
    for (int64_t i = 0; i < trials.num_operations(); i += stride) {
      for (const Way& way : ways) {
        for (int64_t seed = 1; seed <= num_seeds; ++seed) {
          trials.trial(
              cat("power ", mode, ", operation ", i, ", ", way.name, ", seed ", seed),
              [&](FaultyFileSystem& files) { files.lose_power_at(i); },
              [&](MemoryFileSystem& files) {
                files.reboot(way.survival, static_cast<uint64_t>(seed));
              });
        }
      }
    }
    std::printf("power, async_mode %s: %lld operations, %lld losses, %lld failures\n", mode.c_str(),
                static_cast<long long>(trials.num_operations()),
                static_cast<long long>(trials.num_trials()),
                static_cast<long long>(trials.num_failed()));
    failed += trials.num_failed();
  }
  return failed;
}

int64_t fault_trials(int64_t stride, const std::string& async_mode) {
  struct Fault {
    const char* reason;
    bool short_write;
    bool for_good;
  };
  const Fault faults[] = {
      {"No space left on device", false, false}, {"No space left on device", true, false},
      {"No space left on device", false, true},  {"Disk quota exceeded", false, false},
      {"Input/output error", false, false},      {"Interrupted system call", false, false},
      {"Read-only file system", false, true}};
  int64_t failed = 0;
  for (const std::string& mode : modes(async_mode)) {
    DiskTrials trials(mode);
    for (int64_t i = 0; i < trials.num_operations(); i += stride) {
      for (const Fault& fault : faults) {
        trials.trial(
            cat("fault ", mode, ", operation ", i, ", ", fault.reason),
            [&](FaultyFileSystem& files) {
              if (fault.short_write) {
                files.short_write_at(i, fault.reason);
              } else {
                files.fail_at(i, fault.reason, fault.for_good);
              }
            },
            nullptr);
      }
    }
    std::printf(
        "faults, async_mode %s: %lld operations, %lld faults, %lld runs went on to their "
        "end, %lld failures\n",
        mode.c_str(), static_cast<long long>(trials.num_operations()),
        static_cast<long long>(trials.num_trials()), static_cast<long long>(trials.num_completed()),
        static_cast<long long>(trials.num_failed()));
    failed += trials.num_failed();
  }
  return failed;
}

}  // namespace amoeba::test
