#include "amoeba/model.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <set>

#include "amoeba/error.h"
#include "nn/loss.h"
#include "support/errors.h"

namespace amoeba::test {
namespace {

constexpr int64_t kBatch = 2, kLength = 12, kVocab = 24;

nn::ModelConfig small_config() {
  nn::ModelConfig config;
  config.vocab_size = kVocab;
  config.num_layers = 2;
  config.max_seq_len = kLength;
  config.tie_embeddings = true;
  config.init_std = 0.2;
  config.attention.dim = config.moe.router.dim = 16;
  config.attention.num_heads = 4;
  config.attention.num_kv_heads = 2;
  config.attention.head_dim = config.attention.rope.head_dim = 4;
  config.attention.qk_norm = true;
  config.moe.router.num_experts = 5;
  config.moe.router.top_k = 2;
  config.moe.router.route_norm = true;
  config.moe.hidden_dim = 8;
  config.moe.num_shared_experts = 1;
  config.compute_backend = "for_loop";
  return config;
}

nn::ModelInput some_input() {
  nn::ModelInput input;
  input.tokens = at::randint(kVocab, {kBatch * kLength}, at::kLong);
  input.layout.batch_size = kBatch;
  input.layout.seq_len = kLength;
  input.layout.positions = at::arange(kLength, at::kLong).repeat({kBatch});
  return input;
}

double loss_of(nn::Model& model, const nn::ModelInput& input, const at::Tensor& targets) {
  const at::NoGradGuard no_grad;
  return nn::lm_head_cross_entropy(model.forward(input).hidden, model.lm_head(), targets, {})
      .loss_sum.item<double>();
}

TEST(Model, SizeCountsEveryParameterAndTheActiveOnes) {
  for (bool tied : {true, false}) {
    nn::ModelConfig config = small_config();
    config.tie_embeddings = tied;
    const nn::Model model(config, at::kMeta, at::kFloat, 1);
    const int64_t attention = 16 * 16 + 2 * 8 * 16 + 16 * 16 + 2 * 4;  // q, k and v, o, q/k norms
    const int64_t expert = 3 * 16 * 8;
    const int64_t layer = attention + 2 * 16 + 5 * 16 + 5 * expert + expert;
    const int64_t total = 2 * layer + 16 + (tied ? 1 : 2) * kVocab * 16;
    const nn::ModelSize size = model.size(kLength);
    EXPECT_EQ(size.total, total);
    EXPECT_EQ(size.active, total - 2 * 3 * expert);
    const double embedding = tied ? 0 : kVocab * 16;
    EXPECT_EQ(size.flops_per_token, 6.0 * (static_cast<double>(size.active) - embedding) +
                                        6.0 * 2 * 4 * (4 + 4) * kLength);
  }
}

TEST(Model, FlopsOfThePublishedAnchor) {
  // The GQA flavor at S 2048 and 4096, from its published totals.
  nn::ModelConfig config;
  config.vocab_size = 50304;
  config.num_layers = 24;
  config.max_seq_len = 4096;
  config.attention.dim = config.moe.router.dim = 2048;
  config.attention.num_heads = 16;
  config.attention.num_kv_heads = 4;
  config.attention.head_dim = config.attention.rope.head_dim = 128;
  config.moe.router.num_experts = 36;
  config.moe.router.top_k = 3;
  config.moe.hidden_dim = 2112;
  config.moe.num_shared_experts = 2;
  const nn::Model model(config, at::kMeta, at::kBFloat16, 1);
  EXPECT_EQ(model.size(2048).flops_per_token, 12690075648.0);
  EXPECT_EQ(model.size(4096).flops_per_token, 13898035200.0);
}

nn::ModelConfig latent_config(int64_t num_dense_layers) {
  nn::ModelConfig config = small_config();
  config.num_layers = 3;
  config.num_dense_layers = num_dense_layers;
  config.dense_hidden_dim = 20;
  config.attention.qk_norm = false;
  config.attention.mla = nn::MlaConfig{7, 9, 6, 4, 5};
  return config;
}

TEST(Model, DenseLayersComeFirstAndCountNothing) {
  at::manual_seed(8);
  for (int64_t dense : {1, 3}) {
    nn::Model model(latent_config(dense), at::kCPU, at::kFloat, 5);
    model.store().allocate_training_state();
    std::set<std::string> names;
    for (const auto& parameter : model.store().parameters()) names.insert(parameter->name);
    for (int64_t layer = 0; layer < 3; ++layer) {
      const std::string prefix = cat("layers.", layer);
      for (const char* w : {"w1", "w2", "w3"}) {
        EXPECT_EQ(names.count(cat(prefix, ".feed_forward.", w, ".weight")), layer < dense) << layer;
        EXPECT_EQ(names.count(cat(prefix, ".moe.experts.", w)), layer >= dense) << layer;
      }
    }
    EXPECT_EQ(model.expert_bias().sizes(), (at::IntArrayRef{3 - dense, 5}));
    const nn::ModelOutput out = model.forward(some_input());
    EXPECT_EQ(out.counts.sizes(), (at::IntArrayRef{3 - dense, 5}));
    EXPECT_EQ(out.counts.scalar_type(), at::kLong);
    EXPECT_EQ(out.counts.sum().item<int64_t>(), (3 - dense) * kBatch * kLength * 2);
    EXPECT_EQ(out.aux_loss.item<float>() > 0, dense < 3);
    EXPECT_EQ(out.z_loss.item<float>() > 0, dense < 3);
    EXPECT_EQ(model.expert_choice().backend != nullptr, dense < 3);
    torch::autograd::backward({out.hidden}, {at::randn(out.hidden.sizes())});
    for (const auto& parameter : model.store().parameters()) {
      EXPECT_GT(parameter->grad.abs().max().item<float>(), 0.0f) << parameter->name;
    }
  }
}

class ModelKinds : public testing::TestWithParam<bool> {
 protected:
  static nn::ModelConfig config() { return GetParam() ? latent_config(1) : small_config(); }
};
INSTANTIATE_TEST_SUITE_P(Kinds, ModelKinds, testing::Bool(),
                         [](const auto& row) { return row.param ? "mla_dense_first" : "gqa"; });

TEST_P(ModelKinds, GradientsAreTheDifferenceQuotient) {
  at::manual_seed(1);
  nn::Model model(config(), at::kCPU, at::kFloat, 5);
  model.store().allocate_training_state();
  const nn::ModelInput input = some_input();
  const at::Tensor targets = at::randint(kVocab, {kBatch * kLength}, at::kLong);
  const nn::ModelOutput out = model.forward(input);
  const nn::LossOutput loss = nn::lm_head_cross_entropy(out.hidden, model.lm_head(), targets, {});
  torch::autograd::backward({out.hidden}, {loss.dhidden});
  for (const auto& parameter : model.store().parameters()) {
    if (parameter->name.find("router") != std::string::npos) continue;  // may cross a routing edge
    const at::Tensor grad = parameter->grad;
    const double length = grad.norm().item<double>();
    ASSERT_GT(length, 0.0) << parameter->name;
    // Along the gradient itself the slope is its length.
    const at::Tensor direction = grad / length;
    at::Tensor values = parameter->master.detach();
    const at::Tensor saved = values.clone();
    const double step = 2e-3;
    values.copy_(saved + step * direction);
    const double up = loss_of(model, input, targets);
    values.copy_(saved - step * direction);
    const double down = loss_of(model, input, targets);
    values.copy_(saved);
    EXPECT_NEAR((up - down) / (2 * step) / length, 1.0, 0.02) << parameter->name;
  }
}

TEST(Model, EveryBackendGivesTheSameTraining) {
  at::manual_seed(2);
  const nn::ModelInput input = some_input();
  const at::Tensor targets = at::randint(kVocab, {kBatch * kLength}, at::kLong);
  at::Tensor first_grad;
  for (const nn::ExpertBackend& backend : nn::expert_backends()) {
    nn::ModelConfig config = small_config();
    config.compute_backend = std::string(backend.name);
    config.moe.experts.capacity_factor = 100.0;  // nothing dropped
    nn::Model model(config, at::kCPU, at::kFloat, 5);
    model.store().allocate_training_state();
    const nn::ModelOutput out = model.forward(input);
    const nn::LossOutput loss = nn::lm_head_cross_entropy(out.hidden, model.lm_head(), targets, {});
    torch::autograd::backward({out.hidden, out.aux_loss}, {loss.dhidden, at::ones({})});
    EXPECT_EQ(model.expert_stats().calls, 2) << backend.name;
    const at::Tensor grad = model.store().groups()[0].grad;
    if (!first_grad.defined()) first_grad = grad;
    EXPECT_TRUE(at::allclose(grad, first_grad, 1e-4, 1e-5)) << backend.name;
  }
}

TEST(Model, BlockIsAPureFunctionOfHiddenAndIds) {
  at::manual_seed(3);
  nn::Model model(small_config(), at::kCPU, at::kFloat, 5);
  const at::NoGradGuard no_grad;
  const nn::ModelInput input = some_input();
  const at::Tensor hidden = at::randn({kBatch * kLength, 16});
  const nn::BlockOutput routed = model.block(0, hidden, input, {}, nullptr);
  model.expert_bias().select(0, 0).select(0, 1).fill_(100.0);  // would route otherwise now
  const nn::BlockOutput given = model.block(0, hidden, input, routed.expert_ids, nullptr);
  const nn::BlockOutput rerouted = model.block(0, hidden, input, {}, nullptr);
  EXPECT_TRUE(at::equal(given.hidden, routed.hidden));
  EXPECT_TRUE(at::equal(given.counts, routed.counts));
  EXPECT_FALSE(at::equal(rerouted.expert_ids, routed.expert_ids));
}

TEST(Model, PaddingDoesNotReachOtherTokensOrCounts) {
  at::manual_seed(4);
  nn::Model model(small_config(), at::kCPU, at::kFloat, 5);
  const at::NoGradGuard no_grad;
  nn::ModelInput input = some_input();
  input.token_mask = at::ones({kBatch * kLength}, at::kBool);
  input.token_mask.narrow(0, kLength - 3, 3).fill_(false);  // the tail of row 0
  const nn::ModelOutput out = model.forward(input);
  EXPECT_EQ(out.counts.sum().item<int64_t>(), 2 * 2 * (kBatch * kLength - 3));
  nn::ModelInput other = input;
  other.tokens = input.tokens.clone();
  other.tokens.narrow(0, kLength - 3, 3).fill_(0);
  const nn::ModelOutput changed = model.forward(other);
  EXPECT_TRUE(
      at::equal(changed.hidden.narrow(0, 0, kLength - 3), out.hidden.narrow(0, 0, kLength - 3)));
  EXPECT_TRUE(at::equal(changed.counts, out.counts));
}

TEST_P(ModelKinds, CachedStepsGiveTheLogitsOfTheWhole) {
  at::manual_seed(5);
  nn::Model model(config(), at::kCPU, at::kFloat, 5);
  const at::NoGradGuard no_grad;
  nn::ModelInput whole;
  whole.tokens = at::randint(kVocab, {kLength}, at::kLong);
  whole.layout = {1, kLength, at::arange(kLength, at::kLong), {}};
  const at::Tensor want = model.logits(model.forward(whole).hidden);
  std::vector<nn::KvCache> caches = model.make_caches(1, kLength);
  for (int64_t begin = 0, size = 5; begin < kLength; begin += size, size = 1) {
    nn::ModelInput part;
    part.tokens = whole.tokens.narrow(0, begin, size);
    part.layout = {1, size, at::arange(begin, begin + size, at::kLong), {}};
    const at::Tensor logits = model.logits(model.forward(part, &caches).hidden);
    EXPECT_TRUE(at::allclose(logits, want.narrow(0, begin, size), 1e-4, 1e-4)) << begin;
  }
}

TEST(Model, TrainsInBfloat16) {
  at::manual_seed(6);
  nn::Model model(small_config(), at::kCPU, at::kBFloat16, 5);
  model.store().allocate_training_state();
  const nn::ModelOutput out = model.forward(some_input());
  EXPECT_EQ(out.hidden.scalar_type(), at::kBFloat16);
  const at::Tensor targets = at::randint(kVocab, {kBatch * kLength}, at::kLong);
  const nn::LossOutput loss = nn::lm_head_cross_entropy(out.hidden, model.lm_head(), targets, {});
  torch::autograd::backward({out.hidden}, {loss.dhidden});
  for (const auto& parameter : model.store().parameters()) {
    EXPECT_TRUE(at::isfinite(parameter->grad).all().item<bool>()) << parameter->name;
    EXPECT_GT(parameter->grad.abs().max().item<float>(), 0.0f) << parameter->name;
  }
}

struct BadInput {
  const char* name;
  std::function<void(nn::ModelInput&)> spoil;
  const char* message;
};

class RefusedInput : public testing::TestWithParam<BadInput> {};

TEST_P(RefusedInput, NamesWhatWasGotAndWanted) {
  const at::NoGradGuard no_grad;
  nn::Model model(small_config(), at::kCPU, at::kFloat, 5);
  nn::ModelInput input = some_input();
  model.forward(input);
  GetParam().spoil(input);
  EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { model.forward(input); }), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, RefusedInput,
    testing::Values(
        BadInput{"length", [](nn::ModelInput& input) { input.layout.seq_len = 11; },
                 "model: tokens is Long [24], want Long [22] for 2 sequences of 11"},
        BadInput{"no_positions", [](nn::ModelInput& input) { input.layout.positions.reset(); },
                 "model: positions is undefined, want Long [24] for 2 sequences of 12"},
        BadInput{"mask", [](nn::ModelInput& input) { input.token_mask = at::ones({24}); },
                 "model: token_mask is Float [24], want Bool [24] for 2 sequences of 12"},
        BadInput{"segments",
                 [](nn::ModelInput& input) {
                   input.layout.segments = {{0, 0, 12}};
                 },
                 "model: the segments cover 12 tokens, want all 24"},
        BadInput{"position",
                 [](nn::ModelInput& input) { input.layout.positions.select(0, 3).fill_(12); },
                 "rope: position of token 3 is 12, want at least 0 and less than 12"}),
    [](const auto& row) { return row.param.name; });

TEST(Model, UnknownBackendIsRefusedAtConstruction) {
  nn::ModelConfig config = small_config();
  config.compute_backend = "grouped";
  EXPECT_THROW(nn::Model(config, at::kCPU, at::kFloat, 1), Error);
}

struct BadConfig {
  const char* name;
  std::function<void(nn::ModelConfig&)> spoil;
  const char* message;
};

class RefusedConfig : public testing::TestWithParam<BadConfig> {};

TEST_P(RefusedConfig, NamesWhatWasGotAndWanted) {
  nn::ModelConfig config = latent_config(1);
  nn::Model(config, at::kMeta, at::kFloat, 1);
  GetParam().spoil(config);
  EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { nn::Model(config, at::kMeta, at::kFloat, 1); }),
            GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, RefusedConfig,
    testing::Values(BadConfig{"vocab", [](nn::ModelConfig& c) { c.vocab_size = 0; },
                              "model: vocab_size is 0 and num_layers is 3, want both > 0"},
                    BadConfig{"dense_layers", [](nn::ModelConfig& c) { c.num_dense_layers = 4; },
                              "model: num_dense_layers is 4, want 0 to num_layers 3"},
                    BadConfig{"dense_hidden", [](nn::ModelConfig& c) { c.dense_hidden_dim = 0; },
                              "model: dense_hidden_dim is 0, want > 0 with 1 dense layers"},
                    BadConfig{"router_dim", [](nn::ModelConfig& c) { c.moe.router.dim = 8; },
                              "model: moe.router.dim is 8, want attention.dim 16"},
                    BadConfig{"expert_hidden", [](nn::ModelConfig& c) { c.moe.hidden_dim = 0; },
                              "model: moe.hidden_dim is 0, want > 0"},
                    BadConfig{"attention",
                              [](nn::ModelConfig& c) { c.attention.mla->v_head_dim = 0; },
                              "attention: kv_lora_rank is 9 and v_head_dim is 0, want both > 0"}),
    [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace amoeba::test
