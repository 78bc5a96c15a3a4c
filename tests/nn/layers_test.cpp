// Norm, activation, rotation, products, gather and combine: each against the plain computation.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "nn/dispatch.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/plain.h"
#include "nn/rms_norm.h"
#include "nn/rope.h"
#include "nn/swiglu.h"

namespace amoeba::test {
namespace {

class Layers : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(7); }
};

TEST_P(Layers, RmsNormAgreesWithPlain) {
  for (const auto& [rows, dim] : {std::pair<int64_t, int64_t>{1, 8}, {67, 24}, {130, 33}}) {
    const at::Tensor x = random({rows, dim}), weight = random({dim}), dy = random({rows, dim});
    OneParameter parameter(weight);
    at::Tensor leaf = x.to(GetParam()).set_requires_grad(true);
    const at::Tensor y = nn::rms_norm(leaf, *parameter.handle, 1e-5);
    torch::autograd::backward({y}, {dy.to(GetParam())});
    const auto plain = [](const Tensors& in) {
      const at::Tensor wide = in[0].scalar_type() == at::kDouble ? in[0] : in[0].to(at::kFloat);
      const at::Tensor weight_like = in[1].to(wide.scalar_type());
      return (wide * (wide.square().mean(-1, true) + 1e-5).rsqrt() * weight_like)
          .to(in[0].scalar_type());
    };
    const Tensors same = run_with_gradients(plain, {x, weight}, dy, GetParam());
    const Tensors exact =
        run_with_gradients(plain, {x.to(GetParam()), weight}, dy.to(GetParam()), at::kDouble);
    EXPECT_TRUE(compare_rows(y.detach(), same[0], exact[0]))
        << compare_rows(y.detach(), same[0], exact[0]).message;
    EXPECT_TRUE(compare_rows(leaf.grad(), same[1], exact[1]))
        << compare_rows(leaf.grad(), same[1], exact[1]).message;
    const Comparison dw = compare_rows(parameter.handle->grad, same[2].to(at::kFloat), exact[2]);
    EXPECT_TRUE(dw) << "weight: " << dw.message;
  }
}

// The gradient of x's other use joins that of the norm, whichever of the two is there.
TEST_P(Layers, ResidualNormAddsBothGradients) {
  for (const auto& [with_normed, with_residual] :
       {std::pair{true, true}, {true, false}, {false, true}}) {
    const at::Tensor x = random({67, 24}), weight = random({24}), dy = random({67, 24});
    OneParameter parameter(weight);
    const auto combined = [&, normed = with_normed, residual = with_residual](
                              const at::Tensor& in, const at::Tensor& norm) {
      if (!residual) return norm;
      return normed ? in * 3 + norm : in * 3;
    };
    const auto fused = [&](const Tensors& in) {
      const auto [same, normed] = nn::rms_norm_residual(in[0], *parameter.handle, 1e-5);
      return combined(same, normed);
    };
    const auto plain = [&](const Tensors& in) {
      const at::Tensor wide = in[0].scalar_type() == at::kDouble ? in[0] : in[0].to(at::kFloat);
      const at::Tensor normed =
          wide * (wide.square().mean(-1, true) + 1e-5).rsqrt() * weight.to(wide.scalar_type());
      return combined(in[0], normed.to(in[0].scalar_type()));
    };
    expect_agrees(run_with_gradients(fused, {x}, dy, GetParam()), plain, {x}, dy, GetParam());
  }
}

TEST_P(Layers, SwigluAgreesWithPlain) {
  const at::Tensor x = random({37, 2 * 19}) * 4, dy = random({37, 19});
  const auto fused = [](const Tensors& in) { return nn::swiglu(in[0]); };
  const auto plain = [](const Tensors& in) {
    const at::Tensor gate = in[0].narrow(1, 0, 19), up = in[0].narrow(1, 19, 19);
    return gate * at::sigmoid(gate) * up;
  };
  expect_agrees(run_with_gradients(fused, {x}, dy, GetParam()), plain, {x}, dy, GetParam());
}

TEST_P(Layers, RopeAgreesWithPlainAndKeepsLength) {
  const int64_t tokens = 11, heads = 3, hd = 10;
  const nn::RopeTable table = nn::make_rope_table({.head_dim = hd}, 16, at::kCPU);
  const at::Tensor positions = at::randint(16, {tokens}, at::kLong);
  const at::Tensor x = random({tokens, heads, hd}), dy = random({tokens, heads, hd});
  const auto fused = [&](const Tensors& in) { return nn::rope(in[0], table, positions); };
  const auto plain = [&](const Tensors& in) {
    // Written from the definition: pair i turns by position * theta^(-2 i / hd).
    const at::ScalarType dtype = in[0].scalar_type();
    std::vector<at::Tensor> columns;
    for (int64_t i = 0; i < hd / 2; ++i) {
      const at::Tensor angle =
          positions.to(at::kDouble) * std::pow(10000.0, -2.0 * static_cast<double>(i) / hd);
      const at::Tensor cos = angle.cos().to(dtype).unsqueeze(1),
                       sin = angle.sin().to(dtype).unsqueeze(1);
      const at::Tensor a = in[0].select(2, 2 * i), b = in[0].select(2, 2 * i + 1);
      columns.push_back(a * cos - b * sin);
      columns.push_back(a * sin + b * cos);
    }
    return at::stack(columns, 2);
  };
  const Tensors actual = run_with_gradients(fused, {x}, dy, GetParam());
  expect_agrees(actual, plain, {x}, dy, GetParam());
  const double before = x.norm().item<double>(),
               after = actual[0].to(at::kDouble).norm().item<double>();
  EXPECT_NEAR(after / before, 1.0, GetParam() == at::kFloat ? 1e-6 : 1e-2);
}

TEST_P(Layers, LinearAgreesWithPlainAndAccumulates) {
  const at::Tensor x = random({23, 12}), weight = random({7, 12}), dy = random({23, 7});
  OneParameter parameter(weight, GetParam());
  at::Tensor leaf = x.to(GetParam()).set_requires_grad(true);
  const at::Tensor y = nn::linear(leaf, *parameter.handle);
  torch::autograd::backward({y}, {dy.to(GetParam())});
  const auto plain = [](const Tensors& in) { return at::mm(in[0], in[1].t()); };
  expect_agrees({y.detach(), leaf.grad(), parameter.handle->grad.to(GetParam())}, plain,
                {x, weight}, dy, GetParam());
  const at::Tensor once = parameter.handle->grad.clone();
  torch::autograd::backward({nn::linear(leaf, *parameter.handle)}, {dy.to(GetParam())});
  EXPECT_TRUE(at::equal(parameter.handle->grad, once + once));
}

TEST_P(Layers, GatherAndCombineAgreeWithPlain) {
  const int64_t tokens = 13, dim = 18, top_k = 3, experts = 5;
  // Expert 2 gets nothing, token 4 takes one expert twice, E skips a slot.
  at::Tensor ids = at::randint(2, {tokens, top_k}, at::kLong) * 3 + 1;
  ids.select(0, 4).fill_(0);
  ids.select(0, 5).select(0, 1).fill_(experts);
  const nn::Routes routes = nn::sort_by_expert(ids, experts);
  const at::Tensor x = random({tokens, dim}), scores = random({tokens, top_k}),
                   dy = random({tokens, dim});
  const auto fused = [&](const Tensors& in) {
    return nn::combine_rows(nn::gather_rows(in[0], routes), in[1].to(at::kFloat), routes);
  };
  const auto plain = [&](const Tensors& in) { return in[0] * in[1].sum(1, true); };
  expect_agrees(run_with_gradients(fused, {x, scores}, dy, GetParam()), plain, {x, scores}, dy,
                GetParam());
}

TEST_P(Layers, EmbeddingAddsEveryUse) {
  const at::Tensor tokens = at::tensor({3, 0, 3, 3}, at::kLong);
  const at::Tensor weight = random({5, 6}), dy = random({4, 6});
  OneParameter parameter(weight, GetParam());
  const at::Tensor y = nn::embedding(tokens, *parameter.handle);
  torch::autograd::backward({y}, {dy.to(GetParam())});
  const at::Tensor wide = dy.to(GetParam()).to(at::kFloat);
  const at::Tensor grad = parameter.handle->grad;
  EXPECT_TRUE(at::equal(y.detach(), weight.to(at::kFloat).to(GetParam()).index_select(0, tokens)));
  EXPECT_TRUE(at::equal(grad.select(0, 0), wide.select(0, 1)));
  EXPECT_TRUE(
      at::equal(grad.select(0, 3), wide.select(0, 0) + wide.select(0, 2) + wide.select(0, 3)));
  EXPECT_TRUE(at::equal(grad.select(0, 1), at::zeros({6})));
}

INSTANTIATE_TEST_SUITE_P(Types, Layers, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& row) { return std::string(c10::toString(row.param)); });

TEST(Dispatch, SortIsStableAndInverse) {
  const at::Tensor ids = at::tensor({2, 0, 4, 2, 0, 1}, at::kLong).view({3, 2});  // 4 = E: skipped
  const nn::Routes routes = nn::sort_by_expert(ids, 4);
  EXPECT_TRUE(at::equal(routes.row_slot, at::tensor({1, 4, 5, 0, 3, 2}, at::kLong)));
  EXPECT_TRUE(
      at::equal(routes.row_slot.index_select(0, routes.slot_row), at::arange(6, at::kLong)));
}

TEST(Dispatch, CombineOfIntegersIsExact) {
  const nn::Routes routes = nn::sort_by_expert(at::tensor({1, 0, 0, 1}, at::kLong).view({2, 2}), 2);
  const at::Tensor x = at::tensor({3.0f, -5.0f, 7.0f, 11.0f}).view({2, 2});
  const at::Tensor scores = at::tensor({0.5f, 2.0f, 4.0f, 0.25f}).view({2, 2});
  const at::Tensor y = nn::combine_rows(nn::gather_rows(x, routes), scores, routes);
  EXPECT_TRUE(at::equal(y, at::tensor({7.5f, -12.5f, 29.75f, 46.75f}).view({2, 2})));
}

}  // namespace
}  // namespace amoeba::test
