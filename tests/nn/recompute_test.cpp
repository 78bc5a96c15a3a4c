// Activation checkpointing against keeping everything: equal to the bit, and smaller.
#include "nn/recompute.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <iostream>

#include "amoeba/model.h"
#include "nn/loss.h"
#include "support/torch/memory.h"

namespace amoeba::test {
namespace {

using nn::ActivationCheckpoint;

constexpr int64_t kBatch = 2, kVocab = 32;

struct Shape {
  const char* name;
  bool mla;
  int64_t num_dense_layers;
  bool masked = false;
};

nn::ModelConfig config_of(const Shape& shape, ActivationCheckpoint mode, int64_t scale = 1) {
  nn::ModelConfig config;
  config.vocab_size = kVocab;
  config.num_layers = 3;
  config.num_dense_layers = shape.num_dense_layers;
  config.dense_hidden_dim = 28 * scale;
  config.max_seq_len = 12 * scale;
  config.init_std = 0.2;
  config.attention.dim = config.moe.router.dim = 20 * scale;
  config.attention.num_heads = 4;
  if (shape.mla) {
    config.attention.mla = nn::MlaConfig{9 * scale, 11 * scale, 6 * scale, 4 * scale, 7 * scale};
    config.attention.rope.head_dim = 4 * scale;
  } else {
    config.attention.num_kv_heads = 2;
    config.attention.head_dim = config.attention.rope.head_dim = 6 * scale;
  }
  config.moe.router.num_experts = 5;
  config.moe.router.top_k = 2;
  config.moe.router.route_norm = true;
  config.moe.hidden_dim = 8 * scale;
  config.moe.num_shared_experts = 1;
  config.activation_checkpoint = mode;
  return config;
}

nn::ModelInput input_of(const Shape& shape, int64_t length) {
  nn::ModelInput input;
  input.tokens = at::randint(kVocab, {kBatch * length}, at::kLong);
  input.layout = {kBatch, length, at::arange(length, at::kLong).repeat({kBatch}), {}};
  if (shape.masked) {
    input.token_mask = at::ones({kBatch * length}, at::kBool);
    input.token_mask.narrow(0, length - 3, 3).fill_(false);
  }
  return input;
}

// Experts 0 and 1, and 2 and 3, score the same for every token.
void plant_ties(nn::Model& model) {
  for (const auto& parameter : model.store().parameters()) {
    if (parameter->name.find("gate.weight") == std::string::npos) continue;
    for (int64_t expert : {0, 2}) {
      parameter->master.detach()
          .select(0, expert + 1)
          .copy_(parameter->master.detach().select(0, expert));
    }
  }
}

struct Training {
  std::vector<at::Tensor> results;  // of both micro-batches, then the flat gradients
  nn::ExpertStats stats;
  double router_gradient = 0;  // of all routers, the sum of its sizes
  int32_t error_word = 0;
};

Training train(const Shape& shape, ActivationCheckpoint mode, at::ScalarType dtype,
               bool router_losses) {
  at::manual_seed(21);
  nn::Model model(config_of(shape, mode), at::kCPU, dtype, 5);
  plant_ties(model);
  model.store().refresh_compute();
  model.store().allocate_training_state();
  Training run;
  for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
    const nn::ModelInput input = input_of(shape, 12);
    const at::Tensor targets = at::randint(kVocab, {kBatch * 12}, at::kLong);
    const nn::ModelOutput out = model.forward(input);
    const nn::LossOutput loss = nn::lm_head_cross_entropy(out.hidden, model.lm_head(), targets, {});
    // Would route otherwise from here on: backward must take the ids that forward chose.
    model.expert_bias().select(1, 4).add_(100.0);
    if (router_losses && out.aux_loss.requires_grad()) {
      torch::autograd::backward({out.hidden, out.aux_loss, out.z_loss},
                                {loss.dhidden, at::full({}, 0.5), at::full({}, 0.25)});
    } else {
      torch::autograd::backward({out.hidden}, {loss.dhidden});
    }
    for (const at::Tensor& result : {out.hidden, out.counts, out.aux_loss, out.z_loss}) {
      run.results.push_back(result.detach());
    }
    model.expert_bias().zero_();
  }
  for (const auto& parameter : model.store().parameters()) {
    if (parameter->name.find("gate.weight") == std::string::npos) continue;
    run.router_gradient += parameter->grad.abs().sum().item<double>();
  }
  for (const nn::ParameterGroup& group : model.store().groups()) run.results.push_back(group.grad);
  run.stats = model.expert_stats();
  run.error_word = model.error_word().item<int32_t>();
  return run;
}

class CheckpointedModels : public testing::TestWithParam<std::tuple<Shape, at::ScalarType>> {};

TEST_P(CheckpointedModels, EqualKeepingEverythingToTheBit) {
  const auto& [shape, dtype] = GetParam();
  for (bool router_losses : {true, false}) {
    const Training plain = train(shape, ActivationCheckpoint::kNone, dtype, router_losses);
    ASSERT_GT(plain.results.back().abs().max().item<float>(), 0.0f);
    for (ActivationCheckpoint mode :
         {ActivationCheckpoint::kFull, ActivationCheckpoint::kSelective}) {
      const Training again = train(shape, mode, dtype, router_losses);
      ASSERT_EQ(again.results.size(), plain.results.size());
      for (size_t i = 0; i < plain.results.size(); ++i) {
        EXPECT_TRUE(at::equal(again.results[i], plain.results[i]))
            << "result " << i << ", mode " << static_cast<int>(mode);
      }
      EXPECT_EQ(again.stats.calls, 2 * (3 - shape.num_dense_layers));
      EXPECT_EQ(again.stats.calls, plain.stats.calls);
      EXPECT_EQ(again.stats.rows, plain.stats.rows);
      EXPECT_EQ(again.stats.padded_rows, plain.stats.padded_rows);
      EXPECT_EQ(again.stats.saved_bytes, 0);  // nothing lives from forward to backward
      EXPECT_EQ(again.error_word, 0);
      // Scores are gathered anew from the ids that forward chose: the router still learns.
      EXPECT_EQ(again.router_gradient, plain.router_gradient);
      EXPECT_EQ(again.router_gradient > 0, shape.num_dense_layers < 3);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CheckpointedModels,
    testing::Combine(testing::Values(Shape{"gqa", false, 0}, Shape{"gqa_dense_first", false, 1},
                                     Shape{"mla", true, 0}, Shape{"mla_dense_first", true, 2},
                                     Shape{"mla_dense", true, 3},
                                     Shape{"gqa_masked", false, 1, true}),
                     testing::Values(at::kFloat, at::kBFloat16)),
    [](const auto& row) {
      return std::string(std::get<0>(row.param).name) + "_" + c10::toString(std::get<1>(row.param));
    });

TEST(Checkpoint, BlockChoosesTheSameIdsInEveryMode) {
  const Shape shape{"gqa", false, 0};
  at::Tensor first_ids;
  for (ActivationCheckpoint mode : {ActivationCheckpoint::kNone, ActivationCheckpoint::kFull,
                                    ActivationCheckpoint::kSelective}) {
    at::manual_seed(22);
    nn::Model model(config_of(shape, mode), at::kCPU, at::kFloat, 5);
    plant_ties(model);
    model.store().allocate_training_state();
    const nn::ModelInput input = input_of(shape, 12);
    const at::Tensor hidden = at::randn({kBatch * 12, 20});  // requires no gradient of its own
    const nn::BlockOutput out = model.block(1, hidden, input, {}, nullptr);
    if (!first_ids.defined()) first_ids = out.expert_ids;
    EXPECT_TRUE(at::equal(out.expert_ids, first_ids));
    EXPECT_TRUE(out.hidden.requires_grad());
    EXPECT_FALSE(out.expert_ids.requires_grad());
    const at::Tensor given = (first_ids + 1).remainder(5);
    const nn::BlockOutput other = model.block(1, hidden, input, given, nullptr);
    EXPECT_TRUE(at::equal(other.expert_ids, given));
    EXPECT_FALSE(at::equal(other.hidden, out.hidden));
  }
}

// Bytes of tensors that wait for backward, and the most alive at once until its end, above what was
// there before.
struct Memory {
  int64_t kept, peak;
};

Memory memory_of(const Shape& shape, ActivationCheckpoint mode) {
  constexpr int64_t kScale = 8;
  nn::Model model(config_of(shape, mode, kScale), at::kCPU, at::kFloat, 5);
  model.store().allocate_training_state();
  const nn::ModelInput input = input_of(shape, 12 * kScale);
  CountedMemory memory;
  const nn::ModelOutput out = model.forward(input);
  const int64_t kept = memory.live_bytes();
  torch::autograd::backward({out.hidden}, {at::ones(out.hidden.sizes())});
  return {kept, memory.peak_bytes()};
}

TEST(Checkpoint, KeepsLess) {
  for (const Shape& shape : {Shape{"GQA", false, 1}, Shape{"MLA", true, 1}}) {
    const Memory none = memory_of(shape, ActivationCheckpoint::kNone);
    const Memory selective = memory_of(shape, ActivationCheckpoint::kSelective);
    const Memory full = memory_of(shape, ActivationCheckpoint::kFull);
    const auto show = [](const Memory& memory) {
      return std::to_string(memory.kept / 1024) + " (" + std::to_string(memory.peak / 1024) + ")";
    };
    std::cout << shape.name << ", 3 layers, T 192, D 160: KiB kept for backward (peak): none "
              << show(none) << ", selective " << show(selective) << ", full " << show(full) << "\n";
    EXPECT_LT(full.kept, selective.kept);
    EXPECT_LT(selective.kept, none.kept);
    EXPECT_LT(full.peak, selective.peak);
    EXPECT_LT(selective.peak, none.peak);
    // The input of each block, the last one's output and its norm, and ids.
    const int64_t hidden = kBatch * 96 * 160 * 4;
    EXPECT_LT(full.kept, 5 * hidden + 32 * 1024);
  }
}

}  // namespace
}  // namespace amoeba::test
