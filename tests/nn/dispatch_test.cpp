// The unweighted sum of rows, which the weighted one and the gather's backward are held to.
// (Gather and weighted combine against the plain computation: layers_test.cpp.)
#include "nn/dispatch.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>

#include "nn/plain.h"
#include "support/torch/cases.h"

namespace amoeba::test {
namespace {

class UnweightedSum : public testing::TestWithParam<at::ScalarType> {
 protected:
  static constexpr int64_t kTokens = 13, kDim = 18, kTopK = 3, kExperts = 5;
  void SetUp() override {
    at::manual_seed(7);
    ids_ = at::randint(kExperts + 1, {kTokens, kTopK}, at::kLong);  // E: skipped
    ids_.select(0, 4).fill_(0);                                     // one expert three times
    routes_ = nn::sort_by_expert(ids_, kExperts);
  }
  at::Tensor ids_;
  nn::Routes routes_;
  NanFilledMemory nan_filled_;
};

TEST_P(UnweightedSum, AgreesWithPlain) {
  const at::Tensor rows = random({kTokens * kTopK, kDim}), dy = random({kTokens, kDim});
  const auto sum = [&](const Tensors& in) { return nn::combine_rows(in[0], {}, routes_); };
  const auto plain = [&](const Tensors& in) {
    return in[0].index_select(0, routes_.slot_row).view({kTokens, kTopK, kDim}).sum(1);
  };
  expect_agrees(run_with_gradients(sum, {rows}, dy, GetParam()), plain, {rows}, dy, GetParam());
}

TEST_P(UnweightedSum, IsTheWeightedSumWithOnesToTheBit) {
  const at::Tensor rows = random({kTokens * kTopK, kDim}), dy = random({kTokens, kDim});
  const at::Tensor ones = at::ones({kTokens, kTopK});
  const auto sum = [&](const Tensors& in) { return nn::combine_rows(in[0], {}, routes_); };
  const auto weighted = [&](const Tensors& in) { return nn::combine_rows(in[0], ones, routes_); };
  const Tensors actual = run_with_gradients(sum, {rows}, dy, GetParam());
  const Tensors expected = run_with_gradients(weighted, {rows}, dy, GetParam());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(compare_exact(actual[i], expected[i])) << i;
  }
}

TEST_P(UnweightedSum, AndGatherAreEachOthersBackward) {
  const at::Tensor x = at::randint(-9, 10, {kTokens, kDim}, at::kLong).to(GetParam());
  at::Tensor leaf = x.clone().set_requires_grad(true);
  const at::Tensor y = nn::combine_rows(nn::gather_rows(leaf, routes_), {}, routes_);
  torch::autograd::backward({y}, {at::full_like(x, 5)});
  EXPECT_TRUE(at::equal(y, x * kTopK));
  EXPECT_TRUE(at::equal(leaf.grad(), at::full_like(x, 5 * kTopK)));
}

INSTANTIATE_TEST_SUITE_P(Types, UnweightedSum, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& row) { return std::string(c10::toString(row.param)); });

}  // namespace
}  // namespace amoeba::test
