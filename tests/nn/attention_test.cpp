#include "nn/attention.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "amoeba/error.h"
#include "nn/plain.h"

namespace amoeba::test {
namespace {

struct Shape {
  const char* name;
  int64_t heads, kv_heads;
  bool qk_norm;
  std::vector<nn::Segment> segments;
};

constexpr int64_t kBatch = 2, kLength = 9, kDim = 24, kHeadDim = 8;

// Positions restart where a document starts.
at::Tensor positions_of(const std::vector<nn::Segment>& segments) {
  at::Tensor positions = at::arange(kLength, at::kLong).repeat({kBatch});
  for (const nn::Segment& segment : segments) {
    positions.narrow(0, segment.row * kLength + segment.begin, segment.length)
        .copy_(at::arange(segment.length, at::kLong));
  }
  return positions;
}

// [T, T] true where a token may look: same row, same document, not later.
at::Tensor visible(const std::vector<nn::Segment>& segments) {
  std::vector<nn::Segment> all = segments;
  if (all.empty()) {
    for (int64_t row = 0; row < kBatch; ++row) all.push_back({row, 0, kLength});
  }
  at::Tensor mask = at::zeros({kBatch * kLength, kBatch * kLength}, at::kBool);
  for (const nn::Segment& segment : all) {
    const int64_t begin = segment.row * kLength + segment.begin;
    mask.narrow(0, begin, segment.length)
        .narrow(1, begin, segment.length)
        .copy_(at::ones({segment.length, segment.length}, at::kBool).tril());
  }
  return mask;
}

// Written from the definition on whole [T, T] score matrices.
at::Tensor plain_attention(const Tensors& in, const Shape& shape, const at::Tensor& positions) {
  const auto& x = in[0];
  const auto project = [&](const at::Tensor& weight, int64_t heads) {
    return at::mm(x, weight.t()).view({-1, heads, kHeadDim});
  };
  const auto normalise = [](const at::Tensor& y) {
    return y * (y.square().mean(-1, true) + 1e-5).rsqrt();
  };
  const nn::RopeTable table = nn::make_rope_table(kLength, kHeadDim, 10000.0, at::kCPU);
  const at::Tensor cos = table.cos.index_select(0, positions).to(x.scalar_type()).unsqueeze(1);
  const at::Tensor sin = table.sin.index_select(0, positions).to(x.scalar_type()).unsqueeze(1);
  const auto rotate = [&](const at::Tensor& y) {
    const at::Tensor pairs = y.view({y.size(0), y.size(1), kHeadDim / 2, 2});
    const at::Tensor a = pairs.select(3, 0), b = pairs.select(3, 1);
    return at::stack({a * cos - b * sin, a * sin + b * cos}, 3).view(y.sizes());
  };
  at::Tensor q = project(in[1], shape.heads), k = project(in[2], shape.kv_heads);
  const at::Tensor v = project(in[3], shape.kv_heads);
  if (shape.qk_norm) {
    q = normalise(q);
    k = normalise(k);
  }
  q = rotate(q);
  k = rotate(k);
  const at::Tensor hidden = visible(shape.segments).logical_not();
  std::vector<at::Tensor> heads;
  for (int64_t head = 0; head < shape.heads; ++head) {
    const int64_t kv = head / (shape.heads / shape.kv_heads);
    const at::Tensor scores = at::mm(q.select(1, head), k.select(1, kv).t()) / std::sqrt(8.0);
    heads.push_back(at::mm(
        at::softmax(scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()), -1),
        v.select(1, kv)));
  }
  return at::mm(at::cat(heads, 1), in[4].t());
}

struct Fixture {
  explicit Fixture(const Shape& shape)
      : attention({kDim, shape.heads, shape.kv_heads, kHeadDim, shape.qk_norm, 1e-5}, "attention",
                  {0.02, 0.02}, store) {
    store.allocate(at::kCPU, at::kFloat, 11);
    store.allocate_training_state();
    store.groups()[0].master.mul_(20.0);  // scores far from uniform
  }
  nn::ParameterStore store;
  nn::Attention attention;
};

class AttentionShapes : public testing::TestWithParam<Shape> {};

TEST_P(AttentionShapes, AgreesWithPlainInOutputAndGradients) {
  at::manual_seed(9);
  const Shape& shape = GetParam();
  Fixture fixture(shape);
  const at::Tensor positions = positions_of(shape.segments);
  const nn::RopeTable table = nn::make_rope_table(kLength, kHeadDim, 10000.0, at::kCPU);
  const at::Tensor x = random({kBatch * kLength, kDim}).to(at::kFloat);
  const at::Tensor dy = random({kBatch * kLength, kDim});
  at::Tensor leaf = x.clone().set_requires_grad(true);
  const at::Tensor y =
      fixture.attention.forward(leaf, {kBatch, kLength, positions, shape.segments}, table, nullptr);
  torch::autograd::backward({y}, {dy.to(at::kFloat)});

  Tensors inputs = {x.to(at::kDouble)}, actual = {y.detach(), leaf.grad()};
  for (size_t i = 0; i < 4; ++i) {
    inputs.push_back(fixture.store.parameters()[i]->master.detach().to(at::kDouble));
    actual.push_back(fixture.store.parameters()[i]->grad);
  }
  expect_agrees(
      actual, [&](const Tensors& in) { return plain_attention(in, shape, positions); }, inputs, dy,
      at::kFloat);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionShapes,
    testing::Values(
        Shape{"mha", 3, 3, false, {}}, Shape{"gqa", 4, 2, false, {}},
        Shape{"mqa_qk_norm", 4, 1, true, {}},
        Shape{"documents", 4, 2, false, {{0, 0, 4}, {0, 4, 5}, {1, 0, 9}}},
        Shape{"one_token_documents", 3, 3, true, {{0, 0, 1}, {0, 1, 8}, {1, 0, 8}, {1, 8, 1}}}),
    [](const auto& row) { return row.param.name; });

TEST(AttentionCache, TokenByTokenEqualsAllAtOnce) {
  at::manual_seed(10);
  const Shape shape{"gqa", 4, 2, true, {}};
  Fixture fixture(shape);
  const at::NoGradGuard no_grad;
  const nn::RopeTable table = nn::make_rope_table(kLength, kHeadDim, 10000.0, at::kCPU);
  const at::Tensor x = random({kLength, kDim}).to(at::kFloat);
  const at::Tensor whole = fixture.attention.forward(
      x, {1, kLength, at::arange(kLength, at::kLong), {}}, table, nullptr);
  nn::KvCache cache{at::zeros({1, 2, kLength, kHeadDim}), at::zeros({1, 2, kLength, kHeadDim}), 0};
  std::vector<at::Tensor> parts;
  for (const auto& [begin, size] :
       {std::pair<int64_t, int64_t>{0, 4}, {4, 1}, {5, 1}, {6, 1}, {7, 1}, {8, 1}}) {
    parts.push_back(fixture.attention.forward(
        x.narrow(0, begin, size), {1, size, at::arange(begin, begin + size, at::kLong), {}}, table,
        &cache));
  }
  EXPECT_TRUE(at::allclose(at::cat(parts), whole, 1e-5, 1e-5));
  EXPECT_THROW(fixture.attention.forward(x.narrow(0, 0, 1), {1, 1, at::zeros({1}, at::kLong), {}},
                                         table, &cache),
               Error);
}

}  // namespace
}  // namespace amoeba::test
