#include "nn/mla.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include "nn/attention.h"
#include "nn/plain.h"
#include "nn/plain_attention.h"

namespace amoeba::test {
namespace {

// All sizes differ: D 20, latent 14, nope 6, rope 4, v 7, query latent 11.
constexpr int64_t kDim = 20;

struct Shape {
  const char* name;
  int64_t heads, q_lora;
  std::vector<nn::Segment> segments;
  double factor = 1.0;
  double attention_factor = 1.0;
};

nn::AttentionConfig config_of(const Shape& shape) {
  nn::AttentionConfig config;
  config.dim = kDim;
  config.num_heads = shape.heads;
  config.mla = nn::MlaConfig{shape.q_lora, 14, 6, 4, 7};
  config.rope = {.head_dim = 4,
                 .theta = 100.0,
                 .factor = shape.factor,
                 .beta_fast = 2.0,
                 .original_seq_len = 6,
                 .max_seq_len = 24,
                 .attention_factor = shape.attention_factor};
  config.yarn_mscale = 0.7;
  return config;
}

struct Fixture {
  Fixture(const Shape& shape, at::ScalarType dtype)
      : attention(config_of(shape), "attention", {0.02, 0.02}, store) {
    store.allocate(at::kCPU, dtype, 13);
    store.allocate_training_state();
    for (nn::ParameterGroup& group : store.groups()) {
      // Scores far from uniform, norms that are not one, and values that bf16 holds exactly.
      if (group.decay) group.master.mul_(15.0);
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

const Shape kShapes[] = {
    {"full_query", 3, 0, {}},        {"low_rank_query", 3, 11, {}},
    {"stretched", 5, 11, {}, 4.0},   {"attention_factor", 3, 0, {}, 4.0, 1.4},
    {"documents", 3, 0, kDocuments}, {"short_documents", 3, 11, kShortDocuments, 4.0}};

class MlaShapes : public testing::TestWithParam<std::tuple<Shape, at::ScalarType>> {};

TEST_P(MlaShapes, AgreesWithPlainInOutputAndGradients) {
  at::manual_seed(14);
  const auto& [shape, dtype] = GetParam();
  Fixture fixture(shape, dtype);
  const nn::SequenceLayout layout = layout_of(shape.segments);
  const at::Tensor x = random({kRows * kLength, kDim}).to(dtype);
  const at::Tensor dy = random({kRows * kLength, kDim}).to(dtype);
  at::Tensor leaf = x.clone().set_requires_grad(true);
  const at::Tensor y = fixture.attention.forward(leaf, layout, fixture.table, nullptr);
  EXPECT_EQ(y.scalar_type(), dtype);
  EXPECT_TRUE(ran_flash(y) || ran_own_kernels(y)) << "a matrix of scores was made";
  torch::autograd::backward({y}, {dy});

  Tensors inputs = {x.to(at::kDouble)}, actual = {y.detach(), leaf.grad()};
  for (const auto& parameter : fixture.store.parameters()) {
    inputs.push_back(parameter->master.detach().to(at::kDouble));
    actual.push_back(parameter->grad.to(dtype));
  }
  expect_agrees(
      actual,
      [&](const Tensors& in) { return plain_latent(in[0], in, 1, config_of(shape), layout); },
      inputs, dy, dtype);
}

INSTANTIATE_TEST_SUITE_P(Shapes, MlaShapes,
                         testing::Combine(testing::ValuesIn(kShapes),
                                          testing::Values(at::kFloat, at::kBFloat16)),
                         [](const auto& row) {
                           return std::string(std::get<0>(row.param).name) + "_" +
                                  c10::toString(std::get<1>(row.param));
                         });

TEST(Mla, DeclaresTheNamesAndShapesOfTorchtitan) {
  using Entry = std::pair<std::string, std::vector<int64_t>>;
  const auto declared = [](int64_t q_lora) {
    nn::ParameterStore store;
    nn::Attention(config_of({"", 3, q_lora, {}}), "attention", {0.02, 0.01}, store);
    std::vector<Entry> out;
    for (const auto& parameter : store.parameters()) {
      const bool norm = parameter->shape.size() == 1;
      EXPECT_EQ(parameter->keep_fp32, norm) << parameter->name;
      EXPECT_EQ(parameter->decay, !norm) << parameter->name;
      EXPECT_EQ(parameter->init.std, norm                                       ? 0
                                     : parameter->name == "attention.wo.weight" ? 0.01
                                                                                : 0.02)
          << parameter->name;
      out.emplace_back(parameter->name, parameter->shape);
    }
    return out;
  };
  const std::vector<Entry> rest = {{"attention.wkv_a.weight", {18, 20}},
                                   {"attention.kv_norm.weight", {14}},
                                   {"attention.wkv_b.weight", {39, 14}},
                                   {"attention.wo.weight", {20, 21}}};
  std::vector<Entry> full = {{"attention.wq.weight", {30, 20}}};
  full.insert(full.end(), rest.begin(), rest.end());
  EXPECT_EQ(declared(0), full);
  std::vector<Entry> low = {{"attention.wq_a.weight", {11, 20}},
                            {"attention.q_norm.weight", {11}},
                            {"attention.wq_b.weight", {30, 11}}};
  low.insert(low.end(), rest.begin(), rest.end());
  EXPECT_EQ(declared(11), low);
}

TEST(Mla, CacheTokenByTokenEqualsAllAtOnce) {
  at::manual_seed(15);
  for (const Shape& shape : {kShapes[0], kShapes[2]}) {
    Fixture fixture(shape, at::kFloat);
    const at::NoGradGuard no_grad;
    const at::Tensor x = random({kLength, kDim}).to(at::kFloat);
    const at::Tensor whole = fixture.attention.forward(
        x, {1, kLength, at::arange(kLength, at::kLong), {}}, fixture.table, nullptr);
    nn::KvCache cache = fixture.attention.make_cache(1, kLength, at::kFloat);
    EXPECT_EQ(cache.keys.sizes(), (at::IntArrayRef{1, shape.heads, kLength, 10}));
    EXPECT_EQ(cache.values.sizes(), (at::IntArrayRef{1, shape.heads, kLength, 7}));
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0, size = 4; begin < kLength; begin += size, size = 1) {
      parts.push_back(fixture.attention.forward(
          x.narrow(0, begin, size), {1, size, at::arange(begin, begin + size, at::kLong), {}},
          fixture.table, &cache));
    }
    EXPECT_TRUE(at::allclose(at::cat(parts), whole, 1e-5, 1e-5)) << shape.name;
  }
}

TEST(Mla, DocumentsEqualSequencesOfTheirOwn) {
  at::manual_seed(16);
  const Shape& shape = kShapes[2];
  Fixture fixture(shape, at::kFloat);
  const at::NoGradGuard no_grad;
  const at::Tensor x = random({kRows * kLength, kDim}).to(at::kFloat);
  const at::Tensor packed =
      fixture.attention.forward(x, layout_of(kDocuments), fixture.table, nullptr);
  for (const nn::Segment& segment : kDocuments) {
    const int64_t begin = segment.row * kLength + segment.begin;
    const at::Tensor alone = fixture.attention.forward(
        x.narrow(0, begin, segment.length),
        {1, segment.length, at::arange(segment.length, at::kLong), {}}, fixture.table, nullptr);
    EXPECT_TRUE(at::allclose(packed.narrow(0, begin, segment.length), alone, 1e-5, 1e-6)) << begin;
  }
}

}  // namespace
}  // namespace amoeba::test
