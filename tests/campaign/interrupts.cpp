// A child process trains on the disk and is interrupted at a random time; the parent then reads
// what it left. Children are forked before LibTorch has threads, so that they start at once.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <random>
#include <thread>

#include "amoeba/error.h"
#include "apps/options.h"
#include "base/clock.h"
#include "campaign/campaign.h"
#include "support/temporary_folder.h"
#include "train/lab.h"
#include "train/plain/metrics.h"

namespace amoeba::test {
namespace {

constexpr int64_t kSteps = 24;

train::RunConfig disk_config(const std::string& root, const std::string& run) {
  train::RunConfig config = small_config();
  config.run.folder = root + "/" + run;
  config.data.path = {root + "/text.txt"};
  config.training.steps = kSteps;
  config.training.num_threads = 1;
  config.checkpoint.interval = 2;
  return config;
}

// Trains and ends the process: 0 ok, else the error's kind.
[[noreturn]] void train_in_child(train::RunConfig config) {
  apps::catch_stop_signals();
  int code = 1;
  try {
    PosixFileSystem files;
    const formats::Schema schema = train::make_schema(config);
    train::Progress progress([](std::string_view) {}, {});
    train::RunContext context{files, progress, [](LogLevel, std::string_view) {},
                              apps::stop_requested, "amoeba train"};
    train::train(config, schema, context);
    code = 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
    code = static_cast<int>(error.kind());
  }
  ::_exit(code);
}

pid_t start_child(const train::RunConfig& config) {
  const pid_t child = ::fork();
  AMOEBA_CHECK_KIND(kInternal, child >= 0, "campaign: fork failed");
  if (child == 0) train_in_child(config);
  return child;
}

int wait_for(pid_t child) {
  int status = 0;
  AMOEBA_CHECK_KIND(kInternal, ::waitpid(child, &status, 0) == child, "campaign: waitpid failed");
  return status;
}

using Contents = std::map<std::string, std::string>;

class Trials {
 public:
  Trials(const std::string& name, uint64_t seed) : name_(name), random_(seed) {
    files_.create(folder_.path() + "/text.txt")->write(some_text());
    train::RunConfig config = disk_config(folder_.path(), "whole");
    config.checkpoint.interval = 1;
    const Clock clock;
    AMOEBA_CHECK_KIND(kInternal, wait_for(start_child(config)) == 0, "campaign: no reference run");
    run_seconds_ = clock.seconds();
    for (const auto& [step, checkpoint] : train::find_checkpoints(files_, config.run.folder)) {
      want_[step] = checkpoint_contents(files_, checkpoint);
    }
  }

  // Starts, interrupts and checks `count` times; `interrupt` gets the child and returns its status.
  template <typename Interrupt, typename Check>
  void repeat(int64_t count, Interrupt&& interrupt, Check&& check) {
    for (trial_ = 0; trial_ < count; ++trial_) {
      train::RunConfig config = disk_config(folder_.path(), "run");
      config.checkpoint.resume = "auto";
      config.checkpoint.async_mode = trial_ % 2 == 0 ? "async" : "disabled";
      config.checkpoint.keep_latest_k = trial_ % 3 == 0 ? 2 : 0;
      const int64_t before = newest();
      const pid_t child = start_child(config);
      std::this_thread::sleep_for(std::chrono::duration<double>(
          std::uniform_real_distribution<double>(0, 1.1 * run_seconds_)(random_)));
      check(interrupt(child), before);
      check_folder();
      if (newest() == kSteps) {
        files_.remove_all(config.run.folder);
        ++num_runs_;
      }
    }
  }

  void expect(bool condition, const std::string& why) {
    if (condition) return;
    ++num_failed_;
    report_failure(cat(name_, " trial ", trial_), why);
  }

  // Of the newest checkpoint; -1: none.
  int64_t newest() {
    const auto found = train::find_checkpoints(files_, run_folder());
    return found.empty() ? -1 : found[0].step;
  }
  train::RunHistory history() {
    const std::string path = run_folder() + "/metrics.jsonl";
    return files_.exists(path) ? train::read_metrics(files_, path) : train::RunHistory{};
  }
  std::mt19937_64& random() { return random_; }
  double run_seconds() const { return run_seconds_; }
  int64_t num_failed() const { return num_failed_; }
  int64_t num_runs() const { return num_runs_; }
  int64_t num_torn() const { return num_torn_; }
  int64_t num_lost() const { return num_lost_; }

 private:
  std::string run_folder() const { return folder_.path() + "/run"; }

  // Every folder with a checkpoint's name is whole, the newest is at least the last step that was
  // said to be saved, and its state is that of the run without interruption.
  void check_folder() {
    const train::LatestCheckpoint latest = train::load_latest_checkpoint(files_, run_folder());
    num_torn_ += static_cast<int64_t>(latest.skipped.size());
    for (const std::string& reason : latest.skipped) expect(false, reason);
    int64_t committed = -1;
    for (const train::CheckpointRecord& record : history().checkpoints) {
      if (record.error.empty()) committed = std::max(committed, record.step);
    }
    const int64_t step = latest.checkpoint ? latest.checkpoint->step : -1;
    if (step < committed) ++num_lost_;
    expect(step >= committed, cat("step ", committed, " was saved, the newest is ", step));
    if (!latest.checkpoint) return;
    expect(checkpoint_contents(files_, latest.checkpoint->folder) == want_.at(step),
           cat("step ", step, " differs from the run without interruption"));
  }

  std::string name_;
  std::mt19937_64 random_;
  TemporaryFolder folder_;
  PosixFileSystem files_;
  std::map<int64_t, Contents> want_;
  double run_seconds_ = 0;
  int64_t trial_ = 0;
  int64_t num_failed_ = 0, num_runs_ = 0, num_torn_ = 0, num_lost_ = 0;
};

}  // namespace

int64_t kill_trials(int64_t count, uint64_t seed) {
  Trials trials("kill", seed);
  int64_t num_killed = 0;
  while (num_killed < count) {
    trials.repeat(
        count - num_killed,
        [](pid_t child) {
          ::kill(child, SIGKILL);
          return wait_for(child);
        },
        [&](int status, int64_t) {
          if (WIFSIGNALED(status)) ++num_killed;
          trials.expect(WIFSIGNALED(status) || WEXITSTATUS(status) == 0,
                        cat("exit code ", WEXITSTATUS(status)));
        });
  }
  std::printf(
      "kills: %lld processes killed, %lld runs completed, %lld torn checkpoints, "
      "%lld committed steps lost, %lld failures\n",
      static_cast<long long>(num_killed), static_cast<long long>(trials.num_runs()),
      static_cast<long long>(trials.num_torn()), static_cast<long long>(trials.num_lost()),
      static_cast<long long>(trials.num_failed()));
  return trials.num_failed();
}

int64_t signal_trials(int64_t count, uint64_t seed) {
  Trials trials("signal", seed);
  int64_t trial = 0, num_twice = 0, num_ended_at_once = 0, num_redone = 0;
  bool twice = false;
  trials.repeat(
      count,
      [&](pid_t child) {
        const auto one = [&] { return trials.random()() % 2 == 0 ? SIGTERM : SIGINT; };
        ::kill(child, one());
        twice = ++trial % 3 == 0;
        if (twice) {
          ++num_twice;
          std::this_thread::sleep_for(
              std::chrono::duration<double>(std::uniform_real_distribution<double>(
                  0, 0.05 * trials.run_seconds())(trials.random())));
          ::kill(child, one());
        }
        return wait_for(child);
      },
      [&](int status, int64_t before) {
        // The second one, or the first before the child listens, ends it at once.
        const bool at_once = WIFSIGNALED(status);
        if (at_once) ++num_ended_at_once;
        trials.expect(at_once || WEXITSTATUS(status) == 0, cat("exit code ", WEXITSTATUS(status)));
        trials.expect(!at_once || twice || trials.newest() == before,
                      "one signal ended a run that had begun");
        if (at_once) return;
        const train::RunHistory history = trials.history();
        const int64_t done = history.steps.empty() ? 0 : history.steps.back().step;
        num_redone = std::max(num_redone, done - std::max<int64_t>(0, trials.newest()));
        trials.expect(done <= trials.newest() + 1, cat("step ", done,
                                                       " was done, the newest "
                                                       "checkpoint is ",
                                                       trials.newest()));
      });
  std::printf(
      "signals: %lld trials, %lld of them with a second signal, %lld ended at once, at most "
      "%lld steps to do again after exit 0, %lld torn checkpoints, %lld committed steps "
      "lost, %lld failures\n",
      static_cast<long long>(trial), static_cast<long long>(num_twice),
      static_cast<long long>(num_ended_at_once), static_cast<long long>(num_redone),
      static_cast<long long>(trials.num_torn()), static_cast<long long>(trials.num_lost()),
      static_cast<long long>(trials.num_failed()));
  return trials.num_failed();
}

}  // namespace amoeba::test
