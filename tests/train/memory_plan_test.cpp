// The predicted memory of a step against the tensors that live while it is computed. The process as
// a whole: tests/apps/cli_test.py.
#include "train/memory_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/tokenizer.h"
#include "support/torch/memory.h"
#include "train/device.h"
#include "train/lab.h"
#include "train/plain/config_layers.h"

namespace amoeba::test {
namespace {

using train::MemoryPlan;
using train::plan_memory;
using Overrides = std::vector<std::pair<std::string, std::string>>;

train::RunConfig configure(const std::string& preset, const Overrides& overrides) {
  MemoryFileSystem files;
  return train::load_config(files, {preset}, overrides)->config;
}

struct Case {
  std::string name;
  std::string preset;
  Overrides overrides;
};

// Small, and with every part large enough to be missed.
const std::vector<Case> kCases = {
    {"latent attention, a dense layer, a shared expert",
     "moe_debugmodel",
     {{"model.vocab_size", "1024"},
      {"model.dim", "128"},
      {"model.num_layers", "3"},
      {"model.num_heads", "6"},
      {"model.dense_hidden_dim", "640"},
      {"moe.hidden_dim", "96"},
      {"training.seq_len", "96"},
      {"training.local_batch_size", "4"}}},
    {"low-rank queries, groups, sigmoid",
     "moe_671b",
     {{"model.vocab_size", "512"},
      {"model.dim", "96"},
      {"model.num_layers", "4"},
      {"model.num_heads", "4"},
      {"model.q_lora_rank", "80"},
      {"model.dense_hidden_dim", "256"},
      {"moe.num_experts", "16"},
      {"moe.hidden_dim", "64"},
      {"training.seq_len", "128"},
      {"training.local_batch_size", "2"}}},
    {"grouped queries, normalised heads",
     "demo",
     {{"training.seq_len", "64"}, {"training.local_batch_size", "8"}}},
    {"one layer, mostly weights",
     "moe_10b_2b_sdpa_1layer",
     {{"model.vocab_size", "512"},
      {"model.dim", "256"},
      {"moe.hidden_dim", "176"},
      {"training.seq_len", "64"},
      {"training.local_batch_size", "1"}}},
};

// The two kinds of backend: the operators, and rows between a gather and a combination.
class PlannedMemory : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(PlannedMemory, IsThePeakOfTheTensors) {
  const auto [dtype, backend] = GetParam();
  constexpr double kTolerance = 0.03;
  for (const Case& c : kCases) {
    for (const std::string mode : {"none", "full", "selective"}) {
      SCOPED_TRACE(c.name + ", " + mode);
      Overrides overrides = c.overrides;
      for (const auto& [path, value] : Overrides{{"data.path", "/text.txt"},
                                                 {"data.validation_fraction", "0"},
                                                 {"run.folder", "/run"},
                                                 {"training.device", "cpu"},
                                                 {"training.dtype", dtype},
                                                 {"moe.compute_backend", backend},
                                                 {"training.steps", "1"},
                                                 {"training.num_threads", "2"},
                                                 {"training.activation_checkpoint", mode},
                                                 {"checkpoint.enable", "false"},
                                                 {"metrics.report", "false"},
                                                 {"sample.prompt", ""}}) {
        overrides.push_back({path, value});
      }
      const train::RunConfig config = configure(c.preset, overrides);
      Lab lab;
      CountedMemory memory;
      lab.run(config);
      const int64_t peak = memory.peak_bytes();
      const MemoryPlan plan = plan_memory(config, formats::ByteTokenizer().vocab_size(), at::kCPU);
      const double ratio = static_cast<double>(plan.tensors()) / static_cast<double>(peak);
      std::printf("%-46s %-8s %-9s %-8s predicted %9s, tensors %9s: %.3f\n", c.name.c_str(),
                  backend.c_str(), mode.c_str(), dtype.c_str(),
                  format_bytes(plan.tensors()).c_str(), format_bytes(peak).c_str(), ratio);
      EXPECT_NEAR(ratio, 1.0, kTolerance) << describe(plan);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, PlannedMemory,
                         testing::Combine(testing::Values("float32", "bfloat16"),
                                          testing::Values("fused", "for_loop")),
                         [](const auto& test) {
                           return std::get<0>(test.param) + "_" + std::get<1>(test.param);
                         });

TEST(MemoryPlan, ModesOrderAndPersistentPartsAreExact) {
  train::RunConfig config = configure("moe_10b_2b_sdpa", {});
  constexpr int64_t kParameters = 10'036'915'712;
  std::vector<MemoryPlan> plans;
  for (const std::string mode : {"full", "selective", "none"}) {
    config.training.activation_checkpoint = mode;
    plans.push_back(plan_memory(config, formats::ByteTokenizer().vocab_size(), at::kCUDA));
    const MemoryPlan& plan = plans.back();
    EXPECT_EQ(plan.weights, 4 * kParameters);
    EXPECT_EQ(plan.gradients, 4 * kParameters);
    EXPECT_EQ(plan.optimizer, 8 * kParameters);
    EXPECT_EQ(plan.shadow, 2 * kParameters);
    EXPECT_EQ(plan.tensors(), plan.weights + plan.gradients + plan.optimizer + plan.shadow +
                                  plan.activations + std::max(plan.loss, plan.backward));
  }
  EXPECT_LT(plans[0].activations, plans[1].activations);
  EXPECT_LT(plans[1].activations, plans[2].activations);
  EXPECT_GT(plans[0].backward, plans[2].backward);  // a block computed again

  config.training.dtype = "float32";
  EXPECT_EQ(plan_memory(config, formats::ByteTokenizer().vocab_size(), at::kCPU).shadow, 0);
}

TEST(MemoryPlan, DescriptionLeavesOutNothings) {
  MemoryPlan plan;
  plan.weights = 1 << 20;
  plan.backward = 3 << 10;
  EXPECT_EQ(describe(plan), "weights 1.0 MiB, backward 3.0 KiB");
}

// Said before anything is read or allocated: the missing file ends the run.
TEST(Train, WarnsOfWhatDoesNotFit) {
  Lab lab;
  const train::RunConfig config = configure(
      "moe_671b", {{"data.path", "/missing"}, {"run.folder", "/run"}, {"training.device", "cpu"}});
  EXPECT_THROW(lab.run(config), Error);
  const std::string want =
      cat("memory: cpu has ", format_bytes(train::memory_usage(at::kCPU).capacity_bytes),
          ", this run takes 11.1 TiB (weights 2.4 TiB, ");
  EXPECT_NE(lab.log.find(want), std::string::npos) << lab.log;
}

TEST(PlannedMemory, ACopyOfTheStateThatIsSavedInTheBackground) {
  train::RunConfig config = small_config();
  const auto plan = [&](at::DeviceType device) { return plan_memory(config, 257, device); };
  EXPECT_EQ(plan(at::kCPU).snapshot, 0);
  config.checkpoint.async_mode = "async";
  const train::MemoryPlan copied = plan(at::kCPU);
  EXPECT_EQ(copied.snapshot, copied.weights + copied.optimizer);
  EXPECT_EQ(plan(at::kCUDA).snapshot, 0);  // the copy is in host memory
  config.checkpoint.enable = false;
  EXPECT_EQ(plan(at::kCPU).total(), copied.total() - copied.snapshot);
}

TEST(Train, SaysWhatItWillTake) {
  Lab lab;
  train::RunConfig config = configure("demo", {{"data.path", "/text.txt"},
                                               {"run.folder", "/run"},
                                               {"training.steps", "1"},
                                               {"training.local_batch_size", "1"},
                                               {"training.device", "cpu"},
                                               {"checkpoint.enable", "false"}});
  lab.run(config);
  const std::string want = cat(
      "memory: ",
      format_bytes(plan_memory(config, formats::ByteTokenizer().vocab_size(), at::kCPU).total()),
      " predicted (weights ");
  EXPECT_NE(lab.log.find(want), std::string::npos) << lab.log;
}

}  // namespace
}  // namespace amoeba::test
