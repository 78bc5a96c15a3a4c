#include "nn/attention.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/randn.h>

#include "amoeba/error.h"
#include "nn/plain.h"
#include "nn/plain_attention.h"
#include "support/errors.h"

namespace amoeba::test {
namespace {

struct Shape {
  const char* name;
  int64_t heads, kv_heads;
  bool qk_norm;
  std::vector<nn::Segment> segments;
  bool qk_norm_whole = false;
  int64_t sliding_window = 0;
  nn::RopeConfig rope = {};
};

constexpr int64_t kDim = 24, kHeadDim = 8;

// Stretched, so that each of the four pairs turns otherwise.
constexpr nn::RopeConfig kYarn = {.theta = 20.0,
                                  .factor = 4.0,
                                  .beta_fast = 2.0,
                                  .beta_slow = 0.5,
                                  .original_seq_len = 6,
                                  .max_seq_len = 24,
                                  .attention_factor = 1.4};
constexpr nn::RopeConfig kLlama3 = {.theta = 20.0,
                                    .type = nn::RopeType::kLlama3,
                                    .factor = 4.0,
                                    .beta_fast = 2.0,
                                    .beta_slow = 0.5,
                                    .original_seq_len = 6};

nn::AttentionConfig config_of(const Shape& shape) {
  nn::AttentionConfig config;
  config.dim = kDim;
  config.num_heads = shape.heads;
  config.num_kv_heads = shape.kv_heads;
  config.rope = shape.rope;
  config.head_dim = config.rope.head_dim = kHeadDim;
  config.qk_norm = shape.qk_norm;
  config.qk_norm_whole = shape.qk_norm_whole;
  config.sliding_window = shape.sliding_window;
  return config;
}

struct Fixture {
  explicit Fixture(const Shape& shape, at::ScalarType dtype = at::kFloat)
      : attention(config_of(shape), "attention", {0.02, 0.02}, store) {
    store.allocate(at::kCPU, dtype, 11);
    store.allocate_training_state();
    for (nn::ParameterGroup& group : store.groups()) {
      // Scores far from uniform, norms that are not one, and values that bf16 holds exactly.
      if (group.decay) group.master.mul_(20.0);
      if (!group.decay) group.master.add_(at::randn(group.master.sizes()) * 0.3);
      group.master.copy_(group.master.to(at::kBFloat16));
    }
    store.refresh_compute();
    table = nn::make_rope_table(config_of(shape).rope, kLength, at::kCPU);
  }
  nn::ParameterStore store;
  nn::Attention attention;
  nn::RopeTable table;
};

// By kernels of our own where the CPU has them, bf16 widened; else by LibTorch's.
class AttentionShapes : public testing::TestWithParam<std::tuple<Shape, at::ScalarType>> {};

TEST_P(AttentionShapes, AgreesWithPlainInOutputAndGradients) {
  at::manual_seed(9);
  const auto& [shape, dtype] = GetParam();
  Fixture fixture(shape, dtype);
  const nn::SequenceLayout layout = layout_of(shape.segments);
  const at::Tensor x = random({kRows * kLength, kDim}).to(dtype);
  const at::Tensor dy = random({kRows * kLength, kDim}).to(dtype);
  at::Tensor leaf = x.clone().set_requires_grad(true);
  const at::Tensor y = fixture.attention.forward(leaf, layout, fixture.table, nullptr);
  torch::autograd::backward({y}, {dy});

  Tensors inputs = {x.to(at::kDouble)}, actual = {y.detach(), leaf.grad()};
  for (const auto& parameter : fixture.store.parameters()) {
    inputs.push_back(parameter->master.detach().to(at::kDouble));
    actual.push_back(parameter->grad.to(dtype));
  }
  expect_agrees(
      actual,
      [&, &shape = shape](const Tensors& in) {
        return plain_grouped(in[0], in, 1, config_of(shape), layout);
      },
      inputs, dy, dtype);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionShapes,
    testing::Combine(testing::Values(Shape{"mha", 3, 3, false, {}}, Shape{"gqa", 4, 2, false, {}},
                                     Shape{"mqa_qk_norm", 4, 1, true, {}},
                                     Shape{"gqa_whole_qk_norm", 4, 2, true, {}, true},
                                     Shape{"documents", 4, 2, false, kDocuments},
                                     Shape{"window", 4, 2, true, {}, false, 4},
                                     Shape{"window_of_two", 3, 3, false, {}, false, 2},
                                     Shape{"window_not_reached", 4, 2, true, {}, false, 9},
                                     Shape{"window_documents", 4, 2, false, kDocuments, false, 2},
                                     Shape{"one_token_documents", 3, 3, true, kShortDocuments},
                                     Shape{"yarn", 4, 2, false, {}, false, 0, kYarn},
                                     Shape{"yarn_qk_norm", 4, 2, true, kDocuments, false, 0, kYarn},
                                     Shape{"yarn_window", 4, 1, false, {}, false, 4, kYarn},
                                     Shape{"llama3", 4, 2, true, {}, false, 0, kLlama3}),
                     testing::Values(at::kFloat, at::kBFloat16)),
    [](const auto& row) {
      return std::string(std::get<0>(row.param).name) + "_" + c10::toString(std::get<1>(row.param));
    });

class AttentionCache : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Window, AttentionCache, testing::Values(0, 1, 3, 8, 9));

TEST_P(AttentionCache, TokenByTokenEqualsAllAtOnce) {
  at::manual_seed(10);
  const Shape shape{"gqa", 4, 2, true, {}, false, GetParam()};
  Fixture fixture(shape);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random({kLength, kDim}).to(at::kFloat);
  const at::Tensor whole = fixture.attention.forward(
      x, {1, kLength, at::arange(kLength, at::kLong), {}}, fixture.table, nullptr);
  nn::KvCache cache = fixture.attention.make_cache(1, kLength, at::kFloat);
  std::vector<at::Tensor> parts;
  for (const auto& [begin, size] :
       {std::pair<int64_t, int64_t>{0, 4}, {4, 1}, {5, 1}, {6, 1}, {7, 1}, {8, 1}}) {
    parts.push_back(fixture.attention.forward(
        x.narrow(0, begin, size), {1, size, at::arange(begin, begin + size, at::kLong), {}},
        fixture.table, &cache));
  }
  EXPECT_TRUE(at::allclose(at::cat(parts), whole, 1e-5, 1e-5));
  const auto one_more = [&] {
    fixture.attention.forward(x.narrow(0, 0, 1), {1, 1, at::zeros({1}, at::kLong), {}},
                              fixture.table, &cache);
  };
  EXPECT_EQ(error_message(ErrorKind::kUsage, one_more),
            "attention: the cache holds 9 positions, want 10");
}

struct BadConfig {
  const char* name;
  std::function<void(nn::AttentionConfig&)> spoil;
  const char* message;
};

class RefusedAttention : public testing::TestWithParam<BadConfig> {};

TEST_P(RefusedAttention, NamesWhatWasGotAndWanted) {
  nn::AttentionConfig config = config_of({"gqa", 4, 2, false, {}});
  nn::check_attention_config(config);
  GetParam().spoil(config);
  EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { nn::check_attention_config(config); }),
            GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, RefusedAttention,
    testing::Values(BadConfig{"dim", [](nn::AttentionConfig& c) { c.dim = 0; },
                              "attention: dim is 0 and num_heads is 4, want both > 0"},
                    BadConfig{"kv_heads", [](nn::AttentionConfig& c) { c.num_kv_heads = 3; },
                              "attention: num_heads is 4 and num_kv_heads is 3, want a multiple"},
                    BadConfig{"rope", [](nn::AttentionConfig& c) { c.rope.head_dim = 6; },
                              "attention: rope.head_dim is 6, want head_dim 8, even and > 0"},
                    BadConfig{
                        "mla_rope", [](nn::AttentionConfig& c) { c.mla.emplace(); },
                        "attention: rope.head_dim is 8, want qk_rope_head_dim 64, even and > 0"},
                    BadConfig{"mla_norm",
                              [](nn::AttentionConfig& c) {
                                c.mla.emplace();
                                c.qk_norm = true;
                              },
                              "attention: qk_norm is set, want it off with mla"},
                    BadConfig{"values",
                              [](nn::AttentionConfig& c) {
                                c.mla = nn::MlaConfig{0, 12, 6, 4, 11};
                                c.rope.head_dim = 4;
                              },
                              "attention: v_head_dim is 11, want at most the 10 of a key"}),
    [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace amoeba::test
