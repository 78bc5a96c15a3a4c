// The guard in a run: skips, roll-backs, what they leave in the files, and resuming among them.
#include "train/plain/guard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "support/errors.h"
#include "support/torch/memory.h"
#include "train/lab.h"
#include "train/plain/metrics.h"

namespace amoeba::test {
namespace {

using train::RunConfig;
using train::RunSummary;

// Steps whose rows hold a '7' are not finite: its embedding is NaN. They come now and then.
struct Trap {
  explicit Trap(int period) {
    std::string text;
    for (int line = 0; line < 600; ++line) {
      text += line % period == 3 ? "a line with 7 in it\n" : "one line like the others is\n";
    }
    lab.files.corrupt("/text.txt", text);
    config = small_config();
    config.model.tie_embeddings = false;
    config.training.global_batch_size = 4;
    config.training.steps = 4;
    config.checkpoint.interval = 4;
    config.metrics.report = true;
    config.metrics.tensorboard = true;
    config.guard.max_skips = 1;
    config.guard.skip_interval = 10;
    config.guard.max_rollbacks = 1000;
    const size_t row = static_cast<size_t>('7') * 32;
    spoil(lab, lab.run(config).checkpoint, 4, "tok_embeddings.weight", row, row + 32);
    config.checkpoint.resume = "auto";
    config.training.steps = 24;
  }

  train::RunHistory history() { return train::read_metrics(lab.files, "/run/metrics.jsonl"); }

  Lab lab;
  RunConfig config;
};

int64_t count(const train::RunHistory& history, std::string_view action) {
  return std::count_if(history.guard.begin(), history.guard.end(),
                       [&](const auto& record) { return record.action == action; });
}

TEST(GuardedRun, GoesBackAndOnWithOtherDataAndSaysSo) {
  Trap trap(60);
  EXPECT_EQ(trap.lab.run(trap.config).step, 24);
  const train::RunHistory history = trap.history();
  ASSERT_GT(count(history, "rollback"), 0);
  EXPECT_GE(count(history, "skip"), 2 * count(history, "rollback"));
  EXPECT_EQ(history.steps.size(), 24u) << "one record a step, whatever was done again";
  const auto first = std::find_if(history.guard.begin(), history.guard.end(),
                                  [](const auto& record) { return record.action == "rollback"; });
  EXPECT_EQ(first->to_step % 4, 0);
  EXPECT_LT(first->to_step, first->step);
  EXPECT_EQ(first->reason, "2 of 10 steps were rejected, guard.max_skips is 1");
  EXPECT_NE(trap.lab.log.find(cat("; back to step ", first->to_step, " with new data (1 of ")),
            std::string::npos)
      << trap.lab.log;
  EXPECT_NE(trap.lab.log.find(" rejected: loss nan"), std::string::npos) << trap.lab.log;
  const std::string report = trap.lab.files.read("/run/report.html");
  EXPECT_NE(report.find("Guard: rejected steps and roll-backs"), std::string::npos);
  EXPECT_NE(report.find(cat("back to step ", first->to_step, ": ")), std::string::npos);
  std::string events;
  for (const std::string& name : trap.lab.files.list("/run/tensorboard")) {
    events += trap.lab.files.read("/run/tensorboard/" + name);
  }
  EXPECT_NE(events.find("guard/rejected_step"), std::string::npos);
  EXPECT_NE(events.find("guard/rollback_to_step"), std::string::npos);
}

TEST(GuardedRun, ReadsNoRowTwiceAfterARollBack) {
  Trap trap(60);
  const RunSummary summary = trap.lab.run(trap.config);
  const train::RunHistory history = trap.history();
  int64_t again = 0;  // steps that were done and taken back
  for (const train::GuardRecord& record : history.guard) {
    if (record.action == "rollback") again += record.step - record.to_step;
  }
  ASSERT_GT(again, 0);
  const train::Checkpoint last = train::load_checkpoint(trap.lab.files, summary.checkpoint);
  const formats::Value& cursor = last.state.at("data", "state");
  EXPECT_EQ(cursor.integer_at("step", "state"), 24);
  EXPECT_EQ(cursor.integer_at("sequences", "state"), 4 * (24 + again));
  EXPECT_EQ(last.state.at("guard", "state").integer_at("rollbacks", "state"),
            count(history, "rollback"));
}

TEST(GuardedRun, StoppedAnywhereAndResumedGivesTheSameBits) {
  Trap whole(60);
  const auto want = whole.lab.contents(whole.lab.run(whole.config).checkpoint);
  const train::RunHistory history = whole.history();
  for (int64_t at = 0; at < 30; at += 2) {  // steps done, those taken back included
    Trap split(60);
    split.lab.stop_after = at;
    split.lab.run(split.config);
    split.lab.stop_after = -1;
    const RunSummary second = split.lab.run(split.config);
    ASSERT_EQ(split.lab.contents(second.checkpoint), want) << "stopped after " << at + 1;
    const train::RunHistory again = split.history();
    ASSERT_EQ(again.guard.size(), history.guard.size()) << at;
    for (size_t i = 0; i < history.guard.size(); ++i) {
      EXPECT_EQ(again.guard[i].step, history.guard[i].step);
      EXPECT_EQ(again.guard[i].reason, history.guard[i].reason);
    }
  }
}

TEST(GuardedRun, EndsAfterSoManyRollBacksWithTheStateSaved) {
  Trap trap(10);  // hardly a step without a 7
  trap.config.guard.max_rollbacks = 2;
  const std::string message =
      error_message(ErrorKind::kNumeric, [&] { trap.lab.run(trap.config); });
  EXPECT_NE(message.find("2 of 10 steps were rejected, guard.max_skips is 1, the last at step"),
            std::string::npos)
      << message;
  const auto latest = train::load_latest_checkpoint(trap.lab.files, "/run");
  ASSERT_TRUE(latest.checkpoint.has_value());
  EXPECT_NE(message.find("saved in " + latest.checkpoint->folder), std::string::npos) << message;
  EXPECT_EQ(latest.checkpoint->state.at("guard", "state").integer_at("rollbacks", "state"), 2);
  EXPECT_EQ(trap.history().ends.back().reason, "too many steps were rejected");
}

TEST(GuardedRun, WithoutACheckpointToGoBackToItEnds) {
  Trap trap(10);
  trap.config.checkpoint.interval = 0;
  const std::string message =
      error_message(ErrorKind::kNumeric, [&] { trap.lab.run(trap.config); });
  EXPECT_NE(message.find("no checkpoint of checkpoint.interval to go back to"), std::string::npos)
      << message;
}

TEST(GuardedRun, ASpikeIsRejectedBeforeTheOptimizer) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 40;
  config.optimizer.lr = 1e-4;
  config.guard.window = 8;
  config.guard.grad_norm_threshold = 1;  // every few steps there is a spike
  config.guard.max_skips = 100;
  config.training.max_rejected_steps = 100;
  const std::string folder = lab.run(config).checkpoint;
  EXPECT_NE(lab.log.find(" above its limit "), std::string::npos) << lab.log;
  const auto history = train::read_metrics(lab.files, "/run/metrics.jsonl");
  ASSERT_GT(history.guard.size(), 3u);
  for (const train::GuardRecord& record : history.guard) {
    EXPECT_TRUE(history.steps[static_cast<size_t>(record.step - 1)].rejected);
    EXPECT_NE(record.reason.find("grad_norm"), std::string::npos) << record.reason;
  }
  // The optimizer counts what it took.
  const train::Checkpoint saved = train::load_checkpoint(lab.files, folder);
  EXPECT_EQ(saved.state.integer_at("optimizer_steps", "state"),
            40 - static_cast<int64_t>(history.guard.size()));
}

TEST(GuardedRun, ACheckpointWithoutAGuardIsResumed) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 3;
  const train::Checkpoint good = train::load_checkpoint(lab.files, lab.run(config).checkpoint);
  train::CheckpointContent content{.step = 3,
                                   .weights = good.weights,
                                   .optimizer = good.optimizer,
                                   .files = {},
                                   .state = good.state,
                                   .config = good.config};
  std::erase_if(std::get<formats::Object>(content.state.data),
                [](const auto& member) { return member.first == "guard"; });
  train::save_checkpoint(lab.files, "/run", content);
  config.training.steps = 5;
  config.checkpoint.resume = "auto";
  EXPECT_EQ(lab.run(config).step, 5);
}

// Memory runs out in the middle of a run: it ends, and what was saved goes on to the same bits.
TEST(OutOfMemoryInARun, LeavesACheckpointToContinueFrom) {
  RunConfig config = small_config();
  config.training.steps = 4;
  config.training.num_threads = 1;
  config.checkpoint.interval = 1;
  Lab whole;
  const auto want = whole.contents(whole.run(config).checkpoint);
  int64_t num_failures = 0;
  for (int64_t index = 400;; index += 277) {
    Lab split;
    config.checkpoint.resume = "none";
    bool failed = false;
    {
      CountedMemory memory;
      memory.fail_at(index);
      try {
        split.run(config);
      } catch (const std::exception& error) {
        failed = true;
        EXPECT_NE(std::string(error.what()).find("you tried to allocate "), std::string::npos)
            << error.what();
      }
      ASSERT_EQ(memory.has_failed(), failed) << "a failure was swallowed";
    }
    if (!failed) break;
    ++num_failures;
    config.checkpoint.resume = "auto";
    ASSERT_EQ(split.contents(split.run(config).checkpoint), want) << index;
  }
  EXPECT_GT(num_failures, 5);
}

}  // namespace
}  // namespace amoeba::test
