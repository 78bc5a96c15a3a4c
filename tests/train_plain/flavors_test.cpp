#include "train/plain/flavors.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "support/memory_file_system.h"
#include "train/plain/config_layers.h"

namespace amoeba::train {
namespace {

RunConfig resolve(std::string_view name) {
  test::MemoryFileSystem files;
  return load_config(files, {std::string(name)}, {})->config;
}

TEST(Flavors, AreThoseOfTheOrigin) {
  const std::vector<std::string_view> want = {
      "debugmodel",
      "debugmodel_flex_attn",
      "debugmodel_hf",
      "debugmodel_flex_attn_hf",
      "500M",
      "2B",
      "4B",
      "7B",
      "small",
      "10B_2B",
      "10B_2B_sdpa",
      "10B_2B_sdpa_for_loop",
      "10B_2B_sdpa_batched_mm_padded",
      "10B_2B_sdpa_scattermoe",
      "10B_2B_sdpa_1layer",
      "10B_2B_50K_sdpa",
      "10B_2B_50K_sdpa_for_loop",
      "10B_2B_50K_sdpa_batched_mm_padded",
      "10B_2B_50K_sdpa_scattermoe",
      "10B_2B_50K_sdpa_1layer",
      "16B",
      "236B",
      "671B",
      "AGPT_2B_50K_MOE_sdpa",
  };
  std::vector<std::string_view> names;
  for (const Flavor& flavor : flavors()) names.push_back(flavor.name);
  EXPECT_EQ(names, want);
}

TEST(Flavors, NamesMatchExactly) {
  ASSERT_NE(find_flavor("10B_2B"), nullptr);
  EXPECT_EQ(find_flavor("10B_2B")->name, "10B_2B");
  EXPECT_EQ(find_flavor("10b_2b"), nullptr);
  EXPECT_EQ(find_flavor(""), nullptr);
}

TEST(Flavors, BasesAreRowsAboveAndEveryFlavorHasAPreset) {
  std::set<std::string_view> above;
  for (const Flavor& flavor : flavors()) {
    EXPECT_TRUE(flavor.base.empty() || above.contains(flavor.base)) << flavor.name;
    EXPECT_TRUE(above.insert(flavor.name).second) << flavor.name << " is there twice";
  }
  std::set<std::string_view> presets_above, used;
  for (const TrainerPreset& preset : trainer_presets()) {
    EXPECT_TRUE(preset.base.empty() || presets_above.contains(preset.base)) << preset.name;
    EXPECT_TRUE(presets_above.insert(preset.name).second) << preset.name << " is there twice";
    used.insert(preset.flavor);
  }
  EXPECT_EQ(used, above);
}

TEST(Flavors, ABackendInTheNameIsItsDefault) {
  for (const Flavor& flavor : flavors()) {
    std::string want = "auto";
    for (const std::string backend : {"for_loop", "batched_mm_padded"}) {
      if (flavor.name.ends_with(backend)) want = backend;
    }
    EXPECT_EQ(resolve(flavor.name).moe.compute_backend, want) << flavor.name;
  }
}

// Everything the origin's registries say and the parameter counts do not show.
TEST(Flavors, HaveTheOriginsRouterAndRotaryEmbedding) {
  struct Case {
    std::string_view flavor;
    double theta, factor, mscale;
    int64_t max_seq_len;
    std::string score_function;
    int64_t num_groups, num_limited_groups;
    bool route_norm;
    double route_scale;
  };
  const std::vector<Case> cases = {
      {"debugmodel", 1e4, 40, 0.7, 16384, "softmax", 0, 0, false, 1.0},
      {"500M", 1e4, 40, 0.7, 16384, "softmax", 0, 0, false, 1.0},
      {"small", 5e4, 40, 0.7, 256128, "softmax", 0, 0, true, 1.0},
      {"10B_2B_50K_sdpa", 1e4, 40, 0.7, 16384, "softmax", 0, 0, false, 1.0},
      {"16B", 1e4, 40, 0.7, 16384, "softmax", 0, 0, false, 1.0},
      {"236B", 1e4, 40, 1.0, 16384, "softmax", 8, 3, false, 16.0},
      {"671B", 1e4, 40, 1.0, 16384, "sigmoid", 8, 4, true, 2.5},
      {"AGPT_2B_50K_MOE_sdpa", 5e4, 1, 1.0, 131072, "softmax", 0, 0, false, 1.0},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.flavor);
    const RunConfig config = resolve(c.flavor);
    EXPECT_EQ(config.model.rope_theta, c.theta);
    EXPECT_EQ(config.model.rope_factor, c.factor);
    EXPECT_EQ(config.model.rope_mscale, c.mscale);
    EXPECT_EQ(config.model.rope_max_seq_len, c.max_seq_len);
    EXPECT_EQ(config.model.rope_original_seq_len, 4096);
    EXPECT_EQ(config.model.rope_beta_fast, 32.0);
    EXPECT_EQ(config.model.rope_beta_slow, 1.0);
    EXPECT_EQ(config.moe.score_function, c.score_function);
    EXPECT_EQ(config.moe.num_groups, c.num_groups);
    EXPECT_EQ(config.moe.num_limited_groups, c.num_limited_groups);
    EXPECT_EQ(config.moe.route_norm, c.route_norm);
    EXPECT_EQ(config.moe.route_scale, c.route_scale);
    EXPECT_EQ(config.moe.balance_coeff, 1e-3);
    EXPECT_EQ(config.moe.aux_loss_coeff, 0.0);
    EXPECT_FALSE(config.moe.score_before_experts);
    EXPECT_FALSE(config.model.tie_embeddings);
  }
}

TEST(TrainerPresets, HaveTheOriginsTraining) {
  struct Case {
    std::string_view preset;
    int64_t steps, seq_len, local_batch_size;
    std::string activation_checkpoint;
    double lr;
    int64_t warmup_steps;
    std::string decay_type;
    double min_lr_factor;
    int64_t checkpoint_interval;
  };
  const std::vector<Case> cases = {
      {"moe_debugmodel", 10000, 8192, 8, "full", 8e-4, 200, "linear", 0.0, 50},
      {"moe_500m", 10000, 8192, 4, "full", 8e-4, 200, "linear", 0.0, 50},
      {"moe_2b", 10000, 8192, 16, "full", 8e-4, 200, "linear", 0.0, 50},
      {"moe_4b", 10000, 8192, 16, "full", 8e-4, 200, "linear", 0.0, 50},
      {"moe_7b", 10000, 8192, 2, "none", 8e-4, 200, "linear", 0.0, 50},
      {"moe_small", 10000, 8192, 8, "full", 8e-4, 200, "linear", 0.0, 50},
      {"moe_10b_2b", 1000, 8192, 1, "full", 2.2e-4, 200, "cosine", 0.1, 100},
      {"moe_10b_2b_sdpa_batched_mm_padded", 1000, 8192, 2, "none", 2.2e-4, 200, "cosine", 0.1, 100},
      {"moe_10b_2b_50k_sdpa_for_loop", 1100, 2048, 1, "none", 2.2e-4, 200, "cosine", 0.1, 100},
      {"moe_16b", 1000, 8192, 4, "full", 2.2e-4, 200, "cosine", 0.1, 50},
      {"moe_671b", 10000, 8192, 4, "full", 2.2e-4, 2000, "cosine", 0.1, 500},
      {"agpt_2b_50k_moe_sdpa", 1100, 2048, 1, "selective", 2.2e-4, 200, "cosine", 0.1, 100},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.preset);
    const RunConfig config = resolve(c.preset);
    EXPECT_EQ(config.training.steps, c.steps);
    EXPECT_EQ(config.training.seq_len, c.seq_len);
    EXPECT_EQ(config.training.local_batch_size, c.local_batch_size);
    EXPECT_EQ(config.training.activation_checkpoint, c.activation_checkpoint);
    EXPECT_EQ(config.training.dtype, "bfloat16");
    EXPECT_EQ(config.training.max_norm, 1.0);
    EXPECT_EQ(config.optimizer.lr, c.lr);
    EXPECT_EQ(config.optimizer.beta1, 0.9);
    EXPECT_EQ(config.optimizer.beta2, 0.95);
    EXPECT_EQ(config.optimizer.weight_decay, 0.1);
    EXPECT_EQ(config.lr_scheduler.warmup_steps, c.warmup_steps);
    EXPECT_EQ(config.lr_scheduler.decay_ratio, 0.8);
    EXPECT_EQ(config.lr_scheduler.decay_type, c.decay_type);
    EXPECT_EQ(config.lr_scheduler.min_lr_factor, c.min_lr_factor);
    EXPECT_EQ(config.checkpoint.interval, c.checkpoint_interval);
  }
}

}  // namespace
}  // namespace amoeba::train
