// The run loop end to end on a small text in memory: learning, resuming, stopping, refusing.
#include "amoeba/train.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "amoeba/error.h"
#include "support/errors.h"
#include "support/faults.h"
#include "train/device.h"
#include "train/lab.h"
#include "train/plain/checkpoint.h"
#include "train/plain/metrics.h"

namespace amoeba::test {
namespace {

using train::RunConfig;
using train::RunSummary;

TEST(Train, LossFallsAndEverythingIsWritten) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 40;
  config.metrics.report = true;
  config.sample.prompt = "the ";
  config.sample.num_tokens = 20;
  const RunSummary summary = lab.run(config);
  const train::RunHistory history = train::read_metrics(lab.files, "/run/metrics.jsonl");
  ASSERT_EQ(history.steps.size(), 40u);
  EXPECT_NEAR(history.steps.front().loss, std::log(264.0), 0.6);
  EXPECT_LT(history.steps.back().loss, 0.6 * history.steps.front().loss);
  EXPECT_LT(summary.bits_per_byte, 5.0);
  EXPECT_NEAR(summary.validation_loss / std::log(2.0), summary.bits_per_byte, 1e-9);
  EXPECT_FALSE(summary.sample.empty());
  EXPECT_TRUE(lab.files.exists(summary.checkpoint + "/manifest.json"));
  EXPECT_NE(lab.files.read(summary.report).find("<svg"), std::string::npos);
  EXPECT_NE(lab.files.read("/run/config.toml").find("seq_len = 32"), std::string::npos);
  for (const train::StepRecord& step : history.steps) {
    ASSERT_EQ(step.experts.size(), 2u);
    int64_t rows = 0;
    for (int64_t load : step.experts[1].load) rows += load;
    EXPECT_EQ(rows, 8 * 32 * 2);  // both micro-batches, top 2
    EXPECT_FALSE(step.rejected);
  }
}

class Resume : public testing::TestWithParam<int64_t> {};

TEST_P(Resume, ContinuesBitForBit) {
  RunConfig config = small_config();
  config.checkpoint.interval = GetParam();
  Lab whole;
  const auto want = whole.contents(whole.run(config).checkpoint);

  Lab split;
  const int64_t at = GetParam();
  split.stop_after = at - 1;  // asked after each step
  const RunSummary first = split.run(config);
  EXPECT_TRUE(first.stopped);
  EXPECT_EQ(first.step, at);
  split.stop_after = -1;
  config.checkpoint.resume = "auto";
  const RunSummary second = split.run(config);
  EXPECT_EQ(second.step, 12);
  EXPECT_NE(split.log.find("resume: step " + std::to_string(at)), std::string::npos);
  const auto got = split.contents(second.checkpoint);
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, bytes] : want) EXPECT_EQ(got.at(name), bytes) << name;
  // One history, without gaps or repeats.
  const train::RunHistory history = train::read_metrics(split.files, "/run/metrics.jsonl");
  ASSERT_EQ(history.steps.size(), 12u);
  EXPECT_EQ(history.steps.back().step, 12);
}

INSTANTIATE_TEST_SUITE_P(AtSteps, Resume, testing::Values(1, 5, 11));

TEST(Train, SameSeedSameBitsOtherSeedOthers) {
  Lab one, two, three;
  RunConfig config = small_config();
  config.training.steps = 4;
  const auto first = one.contents(one.run(config).checkpoint);
  const auto same = two.contents(two.run(config).checkpoint);
  config.training.seed = 2;
  const auto other = three.contents(three.run(config).checkpoint);
  EXPECT_EQ(first, same);
  EXPECT_NE(first.at("tok_embeddings.weight"), other.at("tok_embeddings.weight"));
}

TEST(Train, AccumulationEqualsOneLargeBatch) {
  Lab one, two;
  RunConfig config = small_config();
  config.training.steps = 1;
  config.moe.aux_loss_coeff = 0;  // its balance is per micro-batch
  config.training.local_batch_size = 8;
  one.run(config);
  config.training.local_batch_size = 2;
  two.run(config);
  const auto large = train::read_metrics(one.files, "/run/metrics.jsonl").steps[0];
  const auto small = train::read_metrics(two.files, "/run/metrics.jsonl").steps[0];
  EXPECT_NEAR(small.loss, large.loss, 1e-6 * large.loss);
  EXPECT_NEAR(small.grad_norm, large.grad_norm, 1e-5 * large.grad_norm);
}

TEST(Train, StepsThatAreNotFiniteAreRejectedAndEndTheRun) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 100;
  config.optimizer.lr = 1e30;
  config.training.max_norm = 0;
  config.training.max_rejected_steps = 3;
  const std::string message = error_message(ErrorKind::kNumeric, [&] { lab.run(config); });
  EXPECT_NE(message.find("3 steps in a row were not finite"), std::string::npos) << message;
  // The live line is gone before the caller prints the error.
  const size_t live = lab.painted.rfind("saving checkpoint");
  ASSERT_NE(live, std::string::npos);
  EXPECT_NE(lab.painted.find('\r', live), std::string::npos);
  const auto checkpoints = train::find_checkpoints(lab.files, "/run");
  ASSERT_EQ(checkpoints.size(), 1u);
  const train::Checkpoint saved = train::load_checkpoint(lab.files, checkpoints[0].folder);
  for (const formats::TensorEntry& entry : saved.weights) {
    const auto* values = reinterpret_cast<const float*>(entry.data.data());
    for (size_t i = 0; i < entry.data.size() / sizeof(float); ++i) {
      ASSERT_TRUE(std::isfinite(values[i])) << entry.name;
    }
  }
}

TEST(Train, ARejectedStepNamesTheBitsOfTheErrorWord) {
  Lab lab;
  RunConfig config = small_config();
  config.optimizer.lr = 3e18;  // queries times keys overflow: NaN behind the attention
  config.training.max_norm = 0;
  config.training.max_rejected_steps = 1;
  error_message(ErrorKind::kNumeric, [&] { lab.run(config); });
  EXPECT_NE(lab.log.find("step 2 rejected: loss "), std::string::npos) << lab.log;
  EXPECT_NE(lab.log.find(", router logits hold NaN; weights"), std::string::npos) << lab.log;
}

TEST(Train, EveryBackendTrains) {
  for (const char* backend :
       {"for_loop", "grouped_mm", "batched_mm_padded", "batched_mm_capacity"}) {
    Lab lab;
    RunConfig config = small_config();
    config.training.steps = 20;
    config.moe.compute_backend = backend;
    lab.run(config);
    const auto history = train::read_metrics(lab.files, "/run/metrics.jsonl");
    EXPECT_EQ(history.starts[0].backend, backend);
    EXPECT_LT(history.steps.back().loss, history.steps.front().loss - 1.0) << backend;
  }
}

TEST(Train, AFolderWithCheckpointsIsNotTakenOver) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 2;
  lab.run(config);
  const std::string message = error_message(ErrorKind::kUsage, [&] { lab.run(config); });
  EXPECT_NE(message.find("--resume auto"), std::string::npos) << message;
}

TEST(Train, ResumingAnotherModelIsRefusedByName) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 2;
  lab.run(config);
  config.checkpoint.resume = "auto";
  config.moe.hidden_dim = 16;
  const std::string message = error_message(ErrorKind::kData, [&] { lab.run(config); });
  EXPECT_NE(message.find("layers.0.moe.experts.w1"), std::string::npos) << message;
}

TEST(Train, OnlyDamagedCheckpointsAreNotBuriedUnderANewRun) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 2;
  const std::string manifest = lab.run(config).checkpoint + "/manifest.json";
  lab.files.corrupt(manifest, lab.files.read(manifest).substr(0, 100));
  const std::string metrics = lab.files.read("/run/metrics.jsonl");
  config.checkpoint.resume = "auto";
  const std::string message = error_message(ErrorKind::kData, [&] { lab.run(config); });
  EXPECT_NE(message.find("no checkpoint in '/run' verifies"), std::string::npos) << message;
  EXPECT_NE(lab.log.find("passed over"), std::string::npos) << lab.log;
  EXPECT_EQ(lab.files.read("/run/metrics.jsonl"), metrics);
}

TEST(Train, ResumingOnAnotherTextIsRefused) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 2;
  lab.run(config);
  config.checkpoint.resume = "auto";
  lab.files.corrupt("/text.txt", some_text() + "one more line\n");
  const std::string message = error_message(ErrorKind::kData, [&] { lab.run(config); });
  EXPECT_NE(message.find("resume: the files of data.path hold ["), std::string::npos) << message;
}

TEST(Train, ResumingBehindNewerCheckpointsNeedsAnotherFolder) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 4;
  config.checkpoint.interval = 2;
  const auto want = lab.contents(lab.run(config).checkpoint);
  config.checkpoint.resume = "/run/checkpoints/step-00000002";
  const std::string message = error_message(ErrorKind::kUsage, [&] { lab.run(config); });
  EXPECT_NE(message.find("holds a checkpoint of step 4, newer than the one to resume from, step 2"),
            std::string::npos)
      << message;
  config.run.folder = "/other";
  EXPECT_EQ(lab.contents(lab.run(config).checkpoint), want);
}

TEST(Train, ADamagedNewerCheckpointDoesNotEndAResumedRun) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 6;
  config.checkpoint.interval = 2;
  config.checkpoint.keep_latest_k = 2;
  lab.run(config);
  lab.files.corrupt("/run/checkpoints/step-00000006/manifest.json", "{}");
  config.checkpoint.resume = "auto";
  config.checkpoint.interval = 1;  // at step 5 the damaged one is still the newest
  EXPECT_EQ(lab.run(config).step, 6);
  EXPECT_NE(lab.log.find("resume: passed over"), std::string::npos) << lab.log;
  EXPECT_NE(lab.log.find("checkpoint: no older one is removed: "), std::string::npos) << lab.log;
  EXPECT_EQ(train::find_checkpoints(lab.files, "/run").size(), 2u);
}

struct StopCase {
  const char* name;
  int64_t validation_interval;
  int64_t steps;
  bool stopped;
};

class StopInValidation : public testing::TestWithParam<StopCase> {};

// Every step polls once and every one of the held-out part's five batches does.
TEST_P(StopInValidation, GivesNoResultAndSavesTheStep) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = GetParam().steps;
  config.validation.interval = GetParam().validation_interval;
  lab.stop_after = 4;
  const RunSummary summary = lab.run(config);
  EXPECT_EQ(summary.step, 2);
  EXPECT_EQ(summary.stopped, GetParam().stopped);
  EXPECT_TRUE(std::isnan(summary.bits_per_byte));
  EXPECT_EQ(summary.checkpoint, "/run/checkpoints/step-00000002");
  EXPECT_TRUE(train::read_metrics(lab.files, "/run/metrics.jsonl").validations.empty());
}

INSTANTIATE_TEST_SUITE_P(When, StopInValidation,
                         testing::Values(StopCase{"between_steps", 2, 9, true},
                                         StopCase{"at_the_end", 0, 2, false}),
                         [](const auto& row) { return row.param.name; });

TEST(Train, ValidationLeavesTheExpertStatisticsOfTrainingAlone) {
  RunConfig config = small_config();
  config.training.steps = 3;
  config.moe.compute_backend = "batched_mm_capacity";
  config.moe.capacity_factor = 0.5;
  Lab without, with;
  without.run(config);
  config.validation.interval = 1;
  with.run(config);
  const auto want = train::read_metrics(without.files, "/run/metrics.jsonl").steps;
  const auto got = train::read_metrics(with.files, "/run/metrics.jsonl").steps;
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_GT(want[i].dropped_rows, 0);
    EXPECT_EQ(got[i].dropped_rows, want[i].dropped_rows) << i;
    EXPECT_EQ(got[i].padding_ratio, want[i].padding_ratio) << i;
  }
}

TEST(Train, AFullDiskLosesNothing) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 4;
  config.checkpoint.interval = 2;
  lab.run(config);
  const auto before = lab.contents("/run/checkpoints/step-00000004");
  config.training.steps = 6;
  config.checkpoint.resume = "auto";
  lab.files.set_free_bytes(1000);
  const std::string message = error_message(ErrorKind::kData, [&] { lab.run(config); });
  EXPECT_NE(message.find("step-00000006"), std::string::npos) << message;
  EXPECT_EQ(lab.contents("/run/checkpoints/step-00000004"), before);
}

TEST(Train, AVocabularyBelowTheTokenizersIsRefused) {
  Lab lab;
  RunConfig config = small_config();
  config.model.vocab_size = 100;
  const std::string message = error_message(ErrorKind::kUsage, [&] { lab.run(config); });
  EXPECT_NE(message.find("model.vocab_size: got 100, want at least 257"), std::string::npos)
      << message;
}

}  // namespace
}  // namespace amoeba::test
