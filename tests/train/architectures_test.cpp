// Every kind of model that the presets hold, made small by overrides, through the whole loop.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "train/lab.h"
#include "train/plain/config_layers.h"
#include "train/plain/metrics.h"

namespace amoeba::test {
namespace {

using Overrides = std::vector<std::pair<std::string, std::string>>;

// A run of seconds on a CPU, whatever the preset.
const Overrides kShort = {
    {"run.folder", "/run"},
    {"data.path", "/text.txt"},
    {"training.device", "cpu"},
    {"training.num_threads", "2"},
    {"training.seq_len", "32"},
    {"validation.interval", "0"},
    {"training.local_batch_size", "2"},
    {"checkpoint.enable", "false"},
    {"metrics.report", "false"},
};
const Overrides kNarrow = {
    {"model.vocab_size", "264"},      {"model.dim", "32"},          {"model.num_heads", "4"},
    {"model.dense_hidden_dim", "48"}, {"model.kv_lora_rank", "16"}, {"model.qk_nope_head_dim", "8"},
    {"model.qk_rope_head_dim", "4"},  {"model.v_head_dim", "8"},    {"moe.hidden_dim", "24"},
    {"moe.num_experts", "16"},        {"training.steps", "2"},
};

train::RunHistory run(const std::string& preset, const std::vector<Overrides>& overrides) {
  Overrides all = kShort;
  for (const Overrides& more : overrides) all.insert(all.end(), more.begin(), more.end());
  MemoryFileSystem none;
  const auto loaded = train::load_config(none, {preset}, all);
  Lab lab;
  lab.run(loaded->config);
  return train::read_metrics(lab.files, "/run/metrics.jsonl");
}

struct Architecture {
  std::string preset;
  Overrides more;
};

const std::vector<Architecture> kArchitectures = {
    {"moe_debugmodel", {{"model.num_layers", "3"}}},
    {"moe_small", {{"model.num_layers", "2"}}},
    {"moe_236b", {{"model.num_layers", "2"}, {"model.q_lora_rank", "24"}}},
    {"moe_671b", {{"model.num_layers", "4"}, {"model.q_lora_rank", "24"}}},
    {"agpt_2b_50k_moe_sdpa",
     {{"model.num_layers", "2"}, {"model.num_kv_heads", "2"}, {"model.head_dim", "8"}}},
    {"moe_10b_2b_sdpa_1layer", {}},
};

std::vector<std::string> backends() {
  train::RunConfig config;
  const formats::Schema schema = train::make_schema(config);
  for (const formats::Key& key : schema.keys()) {
    if (key.path == "moe.compute_backend") return key.choices;
  }
  return {};
}

class Architectures : public testing::TestWithParam<std::tuple<Architecture, std::string>> {};

TEST_P(Architectures, TrainTwoSteps) {
  const auto& [architecture, backend] = GetParam();
  for (const std::string dtype : {"bfloat16", "float32"}) {
    SCOPED_TRACE(dtype);
    const train::RunHistory history =
        run(architecture.preset, {kNarrow,
                                  architecture.more,
                                  {{"moe.compute_backend", backend}, {"training.dtype", dtype}}});
    ASSERT_EQ(history.steps.size(), 2u);
    for (const train::StepRecord& step : history.steps) {
      // At the start every token is about equally likely.
      EXPECT_NEAR(step.loss, std::log(264.0), 1.5);
      EXPECT_TRUE(std::isfinite(step.grad_norm) && step.grad_norm > 0) << step.grad_norm;
      EXPECT_FALSE(step.rejected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, Architectures,
                         testing::Combine(testing::ValuesIn(kArchitectures),
                                          testing::ValuesIn(backends())),
                         [](const auto& test) {
                           return std::get<0>(test.param).preset + "_" + std::get<1>(test.param);
                         });

// The published model itself, but for the vocabulary.
TEST(DebugModel, LossFalls) {
  const train::RunHistory history = run("moe_debugmodel", {{{"model.vocab_size", "264"},
                                                            {"training.steps", "50"},
                                                            {"training.dtype", "float32"},
                                                            {"lr_scheduler.warmup_steps", "10"}}});
  ASSERT_EQ(history.steps.size(), 50u);
  EXPECT_NEAR(history.steps.front().loss, std::log(264.0), 1.0);
  EXPECT_LT(history.steps.back().loss, 0.6 * history.steps.front().loss);
}

}  // namespace
}  // namespace amoeba::test
