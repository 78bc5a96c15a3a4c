// The predicted memory of a step against the peak of the process while it trains.
#include "train/memory_plan.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "base/text.h"
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

// Starts a new peak of the resident memory at what is resident now (proc(5), clear_refs).
bool reset_peak() {
  malloc_trim(0);
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  const train::MemoryUsage usage = train::memory_usage(at::kCPU);
  return file.good() && usage.peak_bytes < usage.current_bytes + (8 << 20);
}

struct Case {
  std::string name;
  std::string preset;
  Overrides overrides;
};

const std::vector<Case> kCases = {
    {"latent attention",
     "moe_debugmodel",
     {{"model.vocab_size", "2048"},
      {"model.num_layers", "4"},
      {"training.seq_len", "256"},
      {"training.local_batch_size", "4"}}},
    {"grouped query", "demo", {}},
    {"one wide layer",
     "moe_10b_2b_sdpa_1layer",
     {{"model.vocab_size", "2048"},
      {"model.dim", "1024"},
      {"moe.num_experts", "12"},
      {"training.seq_len", "512"}}},
};

constexpr double kTolerance = 0.2;  // of the measured peak

TEST(MemoryPlan, IsTheMeasuredPeak) {
  Lab warm_up;  // what LibTorch and the thread pool allocate once
  warm_up.run(configure("demo", {{"data.path", "/text.txt"},
                                 {"run.folder", "/run"},
                                 {"training.device", "cpu"},
                                 {"training.steps", "1"},
                                 {"training.num_threads", "2"},
                                 {"training.local_batch_size", "1"},
                                 {"checkpoint.enable", "false"},
                                 {"metrics.report", "false"}}));
  for (const Case& c : kCases) {
    for (const std::string mode : {"none", "full", "selective"}) {
      SCOPED_TRACE(c.name + ", " + mode);
      Overrides overrides = c.overrides;
      for (const auto& [path, value] : Overrides{{"data.path", "/text.txt"},
                                                 {"run.folder", "/run"},
                                                 {"training.device", "cpu"},
                                                 {"training.dtype", "float32"},
                                                 {"training.steps", "2"},
                                                 {"training.num_threads", "2"},
                                                 {"training.activation_checkpoint", mode},
                                                 {"validation.interval", "0"},
                                                 {"validation.max_windows", "1"},
                                                 {"data.validation_fraction", "0"},
                                                 {"checkpoint.enable", "false"},
                                                 {"metrics.report", "false"},
                                                 {"sample.prompt", ""}}) {
        overrides.push_back({path, value});
      }
      const train::RunConfig config = configure(c.preset, overrides);
      Lab lab;
      if (!reset_peak()) GTEST_SKIP() << "this system does not reset the peak of a process";
      const int64_t before = train::memory_usage(at::kCPU).current_bytes;
      lab.run(config);
      const int64_t measured = train::memory_usage(at::kCPU).peak_bytes - before;
      const MemoryPlan plan = plan_memory(config, at::kCPU);
      const double ratio = static_cast<double>(plan.total()) / static_cast<double>(measured);
      std::printf("%-17s %-9s predicted %10s measured %10s ratio %.2f (%s)\n", c.name.c_str(),
                  mode.c_str(), format_bytes(plan.total()).c_str(), format_bytes(measured).c_str(),
                  ratio, describe(plan).c_str());
      EXPECT_NEAR(ratio, 1.0, kTolerance);
    }
  }
}

TEST(MemoryPlan, ModesOrderAndPersistentPartsAreExact) {
  train::RunConfig config = configure("moe_10b_2b_sdpa", {});
  constexpr int64_t kParameters = 10'036'915'712;
  std::vector<MemoryPlan> plans;
  for (const std::string mode : {"full", "selective", "none"}) {
    config.training.activation_checkpoint = mode;
    plans.push_back(plan_memory(config, at::kCUDA));
    const MemoryPlan& plan = plans.back();
    EXPECT_EQ(plan.weights, 4 * kParameters);
    EXPECT_EQ(plan.gradients, 4 * kParameters);
    EXPECT_EQ(plan.optimizer, 8 * kParameters);
    EXPECT_EQ(plan.shadow, 2 * kParameters);
    EXPECT_EQ(plan.total(), plan.weights + plan.gradients + plan.optimizer + plan.shadow +
                                plan.activations + std::max(plan.loss, plan.backward));
  }
  EXPECT_LT(plans[0].activations, plans[1].activations);
  EXPECT_LT(plans[1].activations, plans[2].activations);
  EXPECT_GT(plans[0].backward, plans[2].backward);  // a block computed again

  config.training.dtype = "float32";
  EXPECT_EQ(plan_memory(config, at::kCPU).shadow, 0);
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

TEST(Train, SaysWhatItWillTake) {
  Lab lab;
  train::RunConfig config = configure("demo", {{"data.path", "/text.txt"},
                                               {"run.folder", "/run"},
                                               {"training.steps", "1"},
                                               {"training.local_batch_size", "1"},
                                               {"training.device", "cpu"},
                                               {"checkpoint.enable", "false"}});
  lab.run(config);
  const std::string want =
      cat("memory: ", format_bytes(plan_memory(config, at::kCPU).total()), " predicted (weights ");
  EXPECT_NE(lab.log.find(want), std::string::npos) << lab.log;
}

}  // namespace
}  // namespace amoeba::test
