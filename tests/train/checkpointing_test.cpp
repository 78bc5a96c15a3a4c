// What a run saves, when, and that it goes on from there bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "amoeba/error.h"
#include "amoeba/train.h"
#include "formats/train_bpe.h"
#include "support/errors.h"
#include "support/faults.h"
#include "train/lab.h"
#include "train/load_model.h"
#include "train/plain/metrics.h"

namespace amoeba::test {
namespace {

using train::RunConfig;
using train::RunSummary;

std::string folder_of(const std::string& run, int64_t step) {
  return run + "/checkpoints/" + train::step_name(step);
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nwant: " << part;
}

// ---- resuming at any step -----------------------------------------------------------------------

constexpr int64_t kSplits = 20;

struct SplitCase {
  const char* name;
  int64_t micro_batches;
  int64_t text_lines;    // 240 lines are about 12,000 tokens
  bool with_rejections;  // some windows make the step rejected
};

// Text in which some lines hold the letter that a spoiled embedding makes NaN.
std::string text_with_rejections() {
  std::string text;
  for (int line = 0; line < 400; ++line) {
    text += line % 10 == 3 ? "a line with Q in it\n" : "one line like the others is\n";
  }
  return text;
}

RunConfig split_config(const SplitCase& c) {
  RunConfig config = small_config();
  config.model.num_layers = 1;
  config.model.tie_embeddings = !c.with_rejections;
  config.training.local_batch_size = c.with_rejections ? 1 : 2;
  config.training.global_batch_size = config.training.local_batch_size * c.micro_batches;
  config.training.steps = kSplits + 1;
  config.training.max_rejected_steps = 100;
  config.validation.max_windows = 1;
  return config;
}

// A checkpoint of step 0 whose embedding of 'Q' is NaN.
void spoil_embedding(Lab& lab, RunConfig config) {
  config.run.folder = "/fresh";
  lab.stop_after = 0;
  const train::Checkpoint fresh = train::load_checkpoint(lab.files, lab.run(config).checkpoint);
  lab.stop_after = -1;
  train::CheckpointContent content;
  content.weights = fresh.weights;
  content.optimizer = fresh.optimizer;
  content.step = fresh.step;
  content.state = fresh.state;
  content.config = fresh.config;
  std::vector<float> values;
  for (formats::TensorEntry& entry : content.weights) {
    if (entry.name != "tok_embeddings.weight") continue;
    values.resize(entry.data.size() / sizeof(float));
    std::memcpy(values.data(), entry.data.data(), entry.data.size());
    std::fill_n(values.begin() + 'Q' * config.model.dim, config.model.dim,
                std::numeric_limits<float>::quiet_NaN());
    entry.data = std::as_bytes(std::span(values));
  }
  ASSERT_FALSE(values.empty());
  train::save_checkpoint(lab.files, "/spoiled", content);
}

class SplitRun : public testing::TestWithParam<SplitCase> {};

// The whole run saves nothing on its way; from each of twenty steps another run goes on to the end.
TEST_P(SplitRun, EveryStateFromASplitOnIsTheWholeRuns) {
  const SplitCase& c = GetParam();
  Lab lab;
  const std::string text = c.with_rejections ? text_with_rejections() : some_text();
  lab.files.corrupt("/text.txt", text.substr(0, text.size() * c.text_lines / 240));
  RunConfig config = split_config(c);
  if (c.with_rejections) {
    spoil_embedding(lab, config);
    config.checkpoint.resume = folder_of("/spoiled", 1);
  }
  const std::string start = config.checkpoint.resume;
  config.run.folder = "/whole";
  const auto want = lab.contents(lab.run(config).checkpoint);
  const train::RunHistory whole = train::read_metrics(lab.files, "/whole/metrics.jsonl");
  const auto num_rejected = std::ranges::count_if(whole.steps, &train::StepRecord::rejected);
  if (c.with_rejections) {
    EXPECT_GT(num_rejected, 3);
    EXPECT_LT(num_rejected, kSplits - 3);
  } else {
    EXPECT_EQ(num_rejected, 0);
  }
  config.run.folder = "/saving";
  config.checkpoint.interval = 1;
  EXPECT_EQ(lab.contents(lab.run(config).checkpoint), want) << "saving changes the run";
  config.checkpoint.interval = 0;
  const int64_t first = start == "none" ? 1 : 2;
  for (int64_t split = first; split <= kSplits; ++split) {
    SCOPED_TRACE(split);
    // A run that was asked to stop after the split, and its continuation.
    config.run.folder = cat("/split", split);
    config.checkpoint.resume = start;
    lab.stop_after = split - first;
    EXPECT_EQ(lab.run(config).step, split);
    lab.stop_after = -1;
    EXPECT_EQ(lab.contents(folder_of(config.run.folder, split)),
              lab.contents(folder_of("/saving", split)));
    config.checkpoint.resume = "auto";
    EXPECT_EQ(lab.contents(lab.run(config).checkpoint), want);
    const auto history = train::read_metrics(lab.files, config.run.folder + "/metrics.jsonl");
    ASSERT_EQ(history.steps.size(), whole.steps.size());
    for (size_t i = 0; i < whole.steps.size(); ++i) {
      EXPECT_EQ(history.steps[i].tokens_seen, whole.steps[i].tokens_seen);
      EXPECT_EQ(history.steps[i].rejected, whole.steps[i].rejected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Runs, SplitRun,
    testing::Values(SplitCase{"plain", 1, 240, false}, SplitCase{"accumulation", 3, 240, false},
                    // An epoch is some 7 steps: splits in its middle and at its end.
                    SplitCase{"epochs", 1, 10, false}, SplitCase{"rejections", 2, 240, true}),
    [](const auto& row) { return row.param.name; });

// A stop that comes in the middle of an accumulation lets the step end.
TEST(Checkpointing, AStepIsNeverSavedByHalf) {
  Lab lab;
  RunConfig config = small_config();  // two micro-batches a step
  lab.stop_after = 0;                 // asked for before the first step is done
  const RunSummary summary = lab.run(config);
  EXPECT_EQ(summary.step, 1);
  EXPECT_TRUE(summary.stopped);
  const train::Checkpoint saved = train::load_checkpoint(lab.files, summary.checkpoint);
  EXPECT_EQ(saved.state.integer_at("tokens_seen", ""), 8 * 32);
  EXPECT_EQ(saved.state.at("data", "").integer_at("sequences", ""), 8);
}

// ---- in the background --------------------------------------------------------------------------

std::vector<int64_t> saved_steps(const train::RunHistory& history) {
  std::vector<int64_t> steps;
  for (const train::CheckpointRecord& record : history.checkpoints) {
    if (record.error.empty()) steps.push_back(record.step);
  }
  return steps;
}

TEST(Checkpointing, InTheBackgroundTheSameIsSaved) {
  RunConfig config = small_config();
  config.training.steps = 6;
  config.checkpoint.interval = 1;  // each save waits for the one before
  Lab waiting, beside;
  waiting.run(config);
  config.checkpoint.async_mode = "async";
  const RunSummary summary = beside.run(config);
  EXPECT_EQ(summary.checkpoint, folder_of("/run", 6));
  for (int64_t step = 1; step <= 6; ++step) {
    EXPECT_EQ(beside.contents(folder_of("/run", step)), waiting.contents(folder_of("/run", step)))
        << step;
  }
  for (Lab* lab : {&waiting, &beside}) {
    const train::RunHistory history = train::read_metrics(lab->files, "/run/metrics.jsonl");
    EXPECT_EQ(saved_steps(history), (std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
    for (const train::CheckpointRecord& record : history.checkpoints) {
      EXPECT_EQ(record.folder, folder_of("/run", record.step));
      EXPECT_GT(record.bytes, 100000);
      EXPECT_GT(record.seconds, 0);
      EXPECT_GT(record.wait_seconds, 0);
    }
    expect_contains(lab->log, "checkpoint: /run/checkpoints/step-00000006, ");
  }
}

class FailedSave : public testing::TestWithParam<const char*> {};

TEST_P(FailedSave, OnTheWayIsAWarningAtTheEndAnError) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 6;
  config.checkpoint.interval = 2;
  config.checkpoint.async_mode = GetParam();
  FaultyFileSystem faulty(lab.files);
  // Renames: config.toml, then each checkpoint.
  faulty.fail_at(Operation::kRename, 2, "Input/output error");
  const RunSummary summary = lab.run(config, &faulty);
  EXPECT_EQ(summary.step, 6);
  EXPECT_EQ(summary.checkpoint, folder_of("/run", 6));
  const train::RunHistory history = train::read_metrics(lab.files, "/run/metrics.jsonl");
  EXPECT_EQ(saved_steps(history), (std::vector<int64_t>{2, 6}));
  ASSERT_EQ(history.checkpoints.size(), 3u);
  expect_contains(history.checkpoints[1].error, "Input/output error");
  EXPECT_EQ(history.checkpoints[1].folder, "");
  expect_contains(lab.log,
                  "checkpoint: step 4 is not saved: rename '/run/checkpoints/step-00000004.partial'"
                  ": Input/output error; the run goes on, the last checkpoint is "
                  "/run/checkpoints/step-00000002");

  Lab full;
  full.files.set_free_bytes(1000);
  const std::string message = error_message(ErrorKind::kData, [&] { full.run(config); });
  expect_contains(message, "save checkpoint step-00000006: need");
  expect_contains(full.log, "step 2 is not saved: save checkpoint step-00000002: need");
}

INSTANTIATE_TEST_SUITE_P(Modes, FailedSave, testing::Values("disabled", "async"),
                         [](const auto& row) { return row.param; });

// ---- which steps --------------------------------------------------------------------------------

TEST(Checkpointing, TheFirstStepAndMultiplesOfKeepEvery) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 11;
  config.checkpoint.interval = 2;
  config.checkpoint.save_first_step = true;
  config.checkpoint.keep_latest_k = 2;
  config.checkpoint.keep_every = 4;
  lab.run(config);
  EXPECT_EQ(lab.files.list("/run/checkpoints"),
            (std::vector<std::string>{"step-00000004", "step-00000008", "step-00000010",
                                      "step-00000011"}));
  EXPECT_EQ(saved_steps(train::read_metrics(lab.files, "/run/metrics.jsonl")),
            (std::vector<int64_t>{1, 2, 4, 6, 8, 10, 11}));
}

// ---- weights only -------------------------------------------------------------------------------

float from_bfloat16(const std::byte* data) {
  uint16_t high;
  std::memcpy(&high, data, sizeof high);
  const uint32_t bits = static_cast<uint32_t>(high) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

TEST(Checkpointing, TheLastOneOfWeightsOnly) {
  RunConfig config = small_config();
  config.training.steps = 4;
  config.checkpoint.interval = 2;
  Lab full, lab;
  const train::Checkpoint want = train::load_checkpoint(full.files, full.run(config).checkpoint);
  config.checkpoint.last_save_model_only = true;
  config.checkpoint.export_dtype = "bfloat16";
  const std::string folder = lab.run(config).checkpoint;
  const train::Checkpoint got = train::load_checkpoint(lab.files, folder);
  EXPECT_TRUE(got.weights_only);
  EXPECT_TRUE(got.optimizer.empty());
  ASSERT_EQ(got.weights.size(), want.weights.size());
  for (size_t i = 0; i < got.weights.size(); ++i) {
    const formats::TensorEntry &exported = got.weights[i], &exact = want.weights[i];
    EXPECT_EQ(exported.name, exact.name);
    if (exported.name == "expert_bias") {
      EXPECT_EQ(exported.dtype, "F32");
      continue;
    }
    ASSERT_EQ(exported.dtype, "BF16") << exported.name;
    for (size_t k = 0; 4 * k < exact.data.size(); ++k) {
      float value;
      std::memcpy(&value, exact.data.data() + 4 * k, 4);
      const float rounded = from_bfloat16(exported.data.data() + 2 * k);
      ASSERT_LE(std::abs(rounded - value), std::abs(value) / 256) << exported.name;
    }
  }
  EXPECT_FALSE(train::load_checkpoint(lab.files, folder_of("/run", 2)).weights_only);

  // Good for use ...
  const auto ignore = [](LogLevel, std::string_view) {};
  const train::LoadedModel model = train::load_model(lab.files, "/run", {"cpu", 1, "", 0}, ignore);
  EXPECT_EQ(model.step, 4);
  const auto& first = *model.model->store().parameters()[0];
  EXPECT_EQ(first.master.view({-1}).const_data_ptr<float>()[5],
            from_bfloat16(got.weights[0].data.data() + 10));
  // ... not for more training.
  config.training.steps = 6;
  config.checkpoint.resume = "auto";
  const std::string message = error_message(ErrorKind::kData, [&] { lab.run(config); });
  EXPECT_EQ(message,
            "resume: /run/checkpoints/step-00000004 holds weights only "
            "(checkpoint.last_save_model_only), want a checkpoint with the optimizer's state");
}

TEST(Checkpointing, ARunThatIsStoppedSavesEverything) {
  Lab lab;
  RunConfig config = small_config();
  config.checkpoint.last_save_model_only = true;
  lab.stop_after = 2;
  const RunSummary summary = lab.run(config);
  EXPECT_FALSE(train::load_checkpoint(lab.files, summary.checkpoint).weights_only);
}

// ---- the tokenizer ------------------------------------------------------------------------------

TEST(Checkpointing, TheTokenizerGoesWithTheCheckpoint) {
  Lab lab;
  const auto write_tokenizer = [&](const std::string& path, int64_t vocab_size) {
    formats::TrainBpeOptions options;
    options.inputs = {"/text.txt"};
    options.vocab_size = vocab_size;
    options.num_threads = 1;
    lab.files.create(path)->write(formats::train_bpe(lab.files, options));
  };
  lab.files.create_directories("/mine");
  write_tokenizer("/mine/words.json", 280);
  lab.files.create("/mine/chat_template.jinja")->write("{{ messages }}");
  write_tokenizer("/others.json", 281);
  RunConfig config = small_config();
  config.model.vocab_size = 304;
  config.training.steps = 2;
  config.data.tokenizer = "/mine/words.json";
  const std::string folder = lab.run(config).checkpoint;
  EXPECT_EQ(lab.files.read(folder + "/tokenizer.json"), lab.files.read("/mine/words.json"));
  EXPECT_EQ(lab.files.read(folder + "/chat_template.jinja"), "{{ messages }}");
  EXPECT_FALSE(lab.files.exists(folder + "/tokenizer_config.json"));

  config.training.steps = 3;
  config.checkpoint.resume = "auto";
  config.data.tokenizer = "/others.json";
  const std::string message = error_message(ErrorKind::kData, [&] { lab.run(config); });
  expect_contains(message, folder + " was trained with tokenizer '/mine/words.json' (");
  expect_contains(message, "), data.tokenizer is '/others.json' (");
  config.data.tokenizer = "bytes";
  expect_contains(error_message(ErrorKind::kData, [&] { lab.run(config); }),
                  "data.tokenizer is 'bytes' (bytes)");

  // The same content under another name is the same tokenizer; the original may be gone.
  lab.files.create("/moved.json")->write(lab.files.read("/mine/words.json"));
  lab.files.remove_all("/mine");
  config.data.tokenizer = "/moved.json";
  EXPECT_EQ(lab.run(config).step, 3);
  lab.files.remove_all("/moved.json");
  const auto ignore = [](LogLevel, std::string_view) {};
  const train::LoadedModel model = train::load_model(lab.files, "/run", {"cpu", 1, "", 0}, ignore);
  EXPECT_EQ(model.tokenizer->vocab_size(), 280);
}

TEST(Checkpointing, PathsAreSavedFromTheRootOn) {
  Lab lab;
  RunConfig config = small_config();
  config.training.steps = 1;
  const auto content = lab.files.read("/text.txt");
  lab.files.create("text.txt")->write(content);
  config.data.path = {"./text.txt"};
  const train::Checkpoint saved = train::load_checkpoint(lab.files, lab.run(config).checkpoint);
  const formats::Array& paths = saved.config.at("data", "").array_at("path", "");
  EXPECT_EQ(formats::write_json(paths.at(0)), formats::write_json({absolute_path("text.txt")}));
  EXPECT_EQ(saved.config.at("data", "").string_at("tokenizer", ""), "bytes");
}

// ---- the job's time -----------------------------------------------------------------------------

TEST(Checkpointing, StopsBeforeTheWallTimeIsOver) {
  Lab whole, lab;
  RunConfig config = small_config();
  config.metrics.report = true;
  const auto want = whole.contents(whole.run(config).checkpoint);
  config.run.max_wall_minutes = 10;
  config.run.stop_margin_seconds = 60;
  double now = 0;
  const auto timed = [&](RunConfig& run, const formats::Schema& schema,
                         train::RunContext& context) {
    context.wall_seconds = [&] { return now += 100; };  // asked after each step
    return train::train(run, schema, context);
  };
  const RunSummary first = lab.call(config, nullptr, timed);
  EXPECT_TRUE(first.stopped);
  EXPECT_EQ(first.step, 6);  // 500 seconds leave 100, 600 leave none
  const std::string reason = "stopped before run.max_wall_minutes, 10, was over";
  expect_contains(lab.log, reason + ": saving step 6");
  EXPECT_EQ(train::read_metrics(lab.files, "/run/metrics.jsonl").ends.back().reason, reason);
  expect_contains(lab.files.read("/run/report.html"), reason);
  config.checkpoint.resume = "auto";
  now = -10000;
  EXPECT_EQ(lab.contents(lab.call(config, nullptr, timed).checkpoint), want);
}

}  // namespace
}  // namespace amoeba::test
