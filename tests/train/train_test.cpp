// The run loop end to end on a small text in memory: learning, resuming, stopping, refusing.
#include "amoeba/train.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "amoeba/error.h"
#include "support/errors.h"
#include "support/faults.h"
#include "support/temporary_folder.h"
#include "train/lab.h"
#include "train/plain/metrics.h"
#include "train/plain/schedule.h"

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
    EXPECT_GT(step.aux_loss, 0.9);
    EXPECT_NEAR(step.z_loss, std::pow(std::log(4.0), 2), 1.0);  // 4 experts, small logits
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

class ResumeInRamp : public testing::TestWithParam<int64_t> {};

TEST_P(ResumeInRamp, ContinuesBitForBit) {
  const int64_t at = GetParam();
  RunConfig config = small_config();
  config.training.steps = 9;
  config.training.local_batch_size = 2;
  config.training.batch_ramp_start = 2;
  config.training.batch_ramp_steps = 7;
  config.checkpoint.interval = at;
  Lab whole, split;
  const auto want = whole.contents(whole.run(config).checkpoint);
  split.stop_after = at - 1;
  EXPECT_EQ(split.run(config).step, at);
  split.stop_after = -1;
  config.checkpoint.resume = "auto";
  const auto got = split.contents(split.run(config).checkpoint);
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, bytes] : want) EXPECT_EQ(got.at(name), bytes) << name;
  // The tokens of a step are those of its batch size, and every routed row is one of them.
  const auto history = train::read_metrics(split.files, "/run/metrics.jsonl");
  ASSERT_EQ(history.steps.size(), 9u);
  int64_t seen = 0;
  for (const train::StepRecord& step : history.steps) {
    const int64_t tokens = train::global_batch_size(config.training, step.step - 1) * 32;
    seen += tokens;
    EXPECT_EQ(step.tokens_seen, seen) << step.step;
    EXPECT_NEAR(step.tokens_per_second * step.step_seconds, static_cast<double>(tokens), 1e-6);
    int64_t rows = 0;
    for (const int64_t load : step.experts[0].load) rows += load;
    EXPECT_EQ(rows, 2 * tokens) << step.step;
  }
  EXPECT_EQ(seen, 32 * (2 + 2 + 2 + 4 + 4 + 6 + 6 + 8 + 8));
}

INSTANTIATE_TEST_SUITE_P(AtSteps, ResumeInRamp, testing::Values(1, 3, 4, 6, 8));

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
  EXPECT_NE(message.find("3 steps in a row were rejected"), std::string::npos) << message;
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

TEST(Train, ARunWhoseLogitsAreNoNumbersEndsWithoutASample) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 2;
  spoil(lab, lab.run(config).checkpoint, 3, "norm.weight", 0, 1);
  config.training.steps = 4;
  config.sample.prompt = "the ";
  config.checkpoint.resume = "auto";
  const RunSummary summary = lab.run(config);
  EXPECT_EQ(summary.step, 4);
  EXPECT_EQ(summary.sample, "");
  EXPECT_NE(lab.log.find("sample: the logit of token 0 is nan, want a number"), std::string::npos);
  EXPECT_EQ(train::read_metrics(lab.files, "/run/metrics.jsonl").ends.back().reason, "completed");
}

TEST(Train, AfterNRejectedStepsTheStateIsSavedThenTheReportThenTheRunEnds) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 2;
  const std::string good = lab.run(config).checkpoint;
  spoil(lab, good, 3, "norm.weight", 0, 1);
  const auto spoiled = lab.contents("/run/checkpoints/step-00000003");

  config.training.steps = 50;
  config.training.max_rejected_steps = 4;
  config.checkpoint.resume = "auto";
  config.metrics.report = true;
  FaultyFileSystem recording(lab.files);
  const std::string message =
      error_message(ErrorKind::kNumeric, [&] { lab.run(config, &recording); });
  EXPECT_NE(message.find("4 steps in a row were rejected, the last at step 7"), std::string::npos)
      << message;
  EXPECT_NE(message.find("saved in /run/checkpoints/step-00000007"), std::string::npos) << message;
  // The state is the one before the first of them, only its place in the data is not.
  auto saved = lab.contents("/run/checkpoints/step-00000007");
  EXPECT_NE(saved.at("state"), spoiled.at("state"));
  saved["state"] = spoiled.at("state");
  EXPECT_EQ(saved, spoiled);
  const auto history = train::read_metrics(lab.files, "/run/metrics.jsonl");
  EXPECT_EQ(std::count_if(history.steps.begin(), history.steps.end(),
                          [](const auto& step) { return step.rejected; }),
            4);
  ASSERT_EQ(history.ends.size(), 2u);
  EXPECT_EQ(history.ends.back().reason, "too many steps were rejected");
  EXPECT_EQ(history.ends.back().checkpoint, "/run/checkpoints/step-00000007");
  EXPECT_NE(lab.files.read("/run/report.html").find("4 rejected steps"), std::string::npos);
  // Saved first: a report that cannot be written costs nothing else.
  const auto place_of = [&](const std::string& what) {
    const auto& log = recording.log();
    return std::find_if(
               log.begin(), log.end(),
               [&](const std::string& line) { return line.find(what) != std::string::npos; }) -
           log.begin();
  };
  EXPECT_LT(place_of("step-00000007.partial/manifest.json"), place_of("report.html"));
}

TEST(Train, OnlyRejectedStepsInARowEndTheRun) {
  // Digits of the text have NaN embeddings; a window with '7' comes now and then.
  Lab lab;
  std::string text;
  for (int line = 0; line < 400; ++line) {
    text += line % 20 == 3 ? "a line with 7 in it\n" : "one line like the others is\n";
  }
  lab.files.corrupt("/text.txt", text);
  RunConfig config = small_config();
  config.model.tie_embeddings = false;
  config.training.global_batch_size = 4;
  config.training.steps = 2;
  const std::string good = lab.run(config).checkpoint;
  const auto row = static_cast<size_t>('7') * 32;
  spoil(lab, good, 3, "tok_embeddings.weight", row, row + 32);
  config.training.steps = 40;
  config.training.max_rejected_steps = 6;
  config.guard.max_skips = 40;
  config.checkpoint.resume = "auto";
  EXPECT_EQ(lab.run(config).step, 40);
  const auto history = train::read_metrics(lab.files, "/run/metrics.jsonl");
  int64_t rejected = 0, longest = 0, in_a_row = 0;
  for (const train::StepRecord& step : history.steps) {
    in_a_row = step.rejected ? in_a_row + 1 : 0;
    longest = std::max(longest, in_a_row);
    rejected += step.rejected ? 1 : 0;
  }
  EXPECT_LT(longest, 6);
  EXPECT_GT(rejected, 6) << "more in all than are allowed in a row";
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
       {"fused", "for_loop", "grouped_mm", "batched_mm_padded", "batched_mm_capacity"}) {
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

// Neither an expert backend nor router losses: all coefficients are at their defaults.
TEST(Train, AModelWithoutExpertsTrainsAndResumes) {
  RunConfig config = small_config();
  config.model.num_dense_layers = config.model.num_layers;
  config.model.dense_hidden_dim = 40;
  config.moe.z_loss_coeff = 1e-3;
  config.training.activation_checkpoint = "full";
  config.checkpoint.interval = 6;
  config.metrics.report = true;
  config.metrics.tensorboard = true;
  Lab whole, first;
  const RunSummary summary = whole.run(config);
  EXPECT_NE(whole.log.find("experts: none (every layer is dense)"), std::string::npos) << whole.log;
  EXPECT_NE(whole.log.find(" 2 layers, vocabulary 264"), std::string::npos) << whole.log;
  const auto history = train::read_metrics(whole.files, "/run/metrics.jsonl");
  EXPECT_EQ(history.starts[0].backend, "none");
  EXPECT_LT(history.steps.back().loss, history.steps.front().loss - 0.5);
  for (const train::StepRecord& step : history.steps) EXPECT_TRUE(step.experts.empty());

  first.stop_after = 5;  // after six steps
  EXPECT_EQ(first.run(config).step, 6);
  first.stop_after = -1;
  config.checkpoint.resume = "auto";
  EXPECT_EQ(first.contents(first.run(config).checkpoint), whole.contents(summary.checkpoint));
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

TEST(Train, AHeldOutPartShorterThanAWindowIsValidated) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 2;
  config.data.validation_fraction = 0.002;  // some 20 bytes
  const RunSummary summary = lab.run(config);
  const auto validations = train::read_metrics(lab.files, "/run/metrics.jsonl").validations;
  ASSERT_EQ(validations.size(), 1u);
  EXPECT_EQ(validations[0].windows, 1);
  EXPECT_NEAR(summary.validation_loss, std::log(264.0), 1.5);
  EXPECT_NEAR(summary.validation_loss / std::log(2.0), summary.bits_per_byte, 1e-9);
}

TEST(Train, ScalarsForTensorBoardChangeNothingElse) {
  Lab without, with;
  RunConfig config = small_config();
  config.training.steps = 4;
  const auto want = without.contents(without.run(config).checkpoint);
  EXPECT_FALSE(without.files.exists("/run/tensorboard"));
  config.metrics.tensorboard = true;
  EXPECT_EQ(with.contents(with.run(config).checkpoint), want);
  ASSERT_EQ(with.files.list("/run/tensorboard").size(), 1u);
  const std::string events =
      with.files.read("/run/tensorboard/" + with.files.list("/run/tensorboard")[0]);
  for (const char* tag : {"loss_metrics/global_avg_loss", "experts/layer_1/max_over_mean",
                          "validation_metrics/bits_per_byte"}) {
    EXPECT_NE(events.find(tag), std::string::npos) << tag;
  }
  // Another session, another file.
  config.training.steps = 6;
  config.checkpoint.resume = "auto";
  with.run(config);
  EXPECT_EQ(with.files.list("/run/tensorboard").size(), 2u);
}

// LibTorch writes traces itself: this needs a disk.
struct Disk {
  Disk() { files.create(folder.path() + "/text.txt")->write(some_text()); }
  RunConfig config() const {
    RunConfig config = small_config();
    config.training.steps = 5;
    config.data.path = {folder.path() + "/text.txt"};
    config.run.folder = folder.path() + "/run";
    return config;
  }
  TemporaryFolder folder;
  PosixFileSystem files;
};

TEST(Train, TracesTheStepsAskedFor) {
  Disk disk;
  Lab lab, plain;
  RunConfig config = disk.config();
  config.profiling.start_step = 3;
  config.profiling.num_steps = 2;
  lab.run(config, &disk.files);
  const std::string traces = config.run.folder + "/traces";
  ASSERT_EQ(disk.files.list(traces),
            (std::vector<std::string>{"step-00000003.json", "step-00000004.json"}));
  for (const int64_t step : {3, 4}) {
    const std::string path = cat(traces, "/step-0000000", step, ".json");
    EXPECT_NE(lab.log.find("trace: " + path), std::string::npos) << lab.log;
    const formats::Value trace = formats::parse_json(disk.files.read(path), path);
    std::map<std::string, int64_t> ranges;
    int64_t operators = 0;
    for (const formats::Value& event : trace.array_at("traceEvents", path)) {
      const formats::Value* category = event.find("cat");
      if (category == nullptr) continue;
      if (formats::write_json(*category) == "\"cpu_op\"") ++operators;
      if (formats::write_json(*category) != "\"user_annotation\"") continue;
      ++ranges[event.string_at("name", path)];
      EXPECT_GE(event.number_at("dur", path), 0);
    }
    // Two micro-batches, two layers; two norms a layer and the last one.
    EXPECT_EQ(ranges, (std::map<std::string, int64_t>{{cat("step ", step), 1},
                                                      {"data", 1},
                                                      {"norm", 10},
                                                      {"attention", 4},
                                                      {"router", 4},
                                                      {"routed experts", 4},
                                                      {"experts", 4},
                                                      {"feed forward", 4},
                                                      {"loss", 2},
                                                      {"backward", 2},
                                                      {"optimizer", 1}}));
    EXPECT_GT(operators, 100);
  }
  RunConfig same = small_config();
  same.training.steps = 5;
  EXPECT_EQ(checkpoint_contents(disk.files, config.run.folder + "/checkpoints/step-00000005"),
            plain.contents(plain.run(same).checkpoint));
}

TEST(Train, ATraceThatCannotBeWrittenIsAWarning) {
  Disk disk;
  Lab lab;
  RunConfig config = disk.config();
  config.profiling.start_step = 2;
  config.profiling.num_steps = 1;
  disk.files.create_directories(config.run.folder);
  disk.files.create(config.run.folder + "/traces")->write("in the way");
  EXPECT_EQ(lab.run(config, &disk.files).step, 5);
  EXPECT_NE(lab.log.find("/run/traces"), std::string::npos) << lab.log;
}

}  // namespace
}  // namespace amoeba::test
