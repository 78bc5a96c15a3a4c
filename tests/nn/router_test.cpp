#include "nn/router.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <set>
#include <vector>

#include "base/error_word.h"
#include "nn/plain.h"

namespace amoeba::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(SelectExperts, TiesGoToTheLowerIdAndBestComesFirst) {
  const at::Tensor choice =
      at::tensor({0.5f, 0.5f, 0.5f, 0.5f, 0.1f, 0.9f, 0.9f, 0.2f}).view({2, 4});
  EXPECT_TRUE(
      at::equal(nn::select_experts(choice, 2), at::tensor({0, 1, 1, 2}, at::kLong).view({2, 2})));
}

TEST(SelectExperts, NanNeverGivesABadOrRepeatedId) {
  at::manual_seed(1);
  for (int64_t experts : {1, 2, 5, 8}) {
    for (int64_t top_k = 1; top_k <= experts; ++top_k) {
      at::Tensor choice = at::randn({64, experts});
      choice.masked_fill_(at::rand({64, experts}).lt(0.4), kNan);
      choice.select(0, 0).fill_(kNan);
      choice.select(0, 1).fill_(std::numeric_limits<float>::infinity());
      choice.select(0, 2).fill_(-std::numeric_limits<float>::infinity());
      const at::Tensor ids = nn::select_experts(choice, top_k);
      for (int64_t t = 0; t < 64; ++t) {
        std::set<int64_t> row;
        for (int64_t k = 0; k < top_k; ++k) row.insert(ids[t][k].item<int64_t>());
        EXPECT_EQ(static_cast<int64_t>(row.size()), top_k);
        EXPECT_GE(*row.begin(), 0);
        EXPECT_LT(*row.rbegin(), experts);
      }
    }
  }
}

TEST(SelectExperts, AgreesWithANaiveSort) {
  at::manual_seed(2);
  const at::Tensor choice = at::randint(6, {200, 9}, at::kLong).to(at::kFloat);  // many ties
  const at::Tensor ids = nn::select_experts(choice, 4);
  for (int64_t t = 0; t < 200; ++t) {
    std::vector<int64_t> order = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return choice[t][a].item<float>() > choice[t][b].item<float>();
    });
    for (int64_t k = 0; k < 4; ++k)
      EXPECT_EQ(ids[t][k].item<int64_t>(), order[static_cast<size_t>(k)]);
  }
}

TEST(CountExperts, CountsIntegersAndSkipsTheSentinel) {
  const at::Tensor ids = at::tensor({0, 1, 0, 4, 2, 4, 0, 1}, at::kLong).view({4, 2});
  EXPECT_TRUE(at::equal(nn::count_experts(ids, 4), at::tensor({3, 2, 1, 0}, at::kLong)));
}

struct Fixture {
  explicit Fixture(nn::RouterConfig config) : router(config, "router", 0.5, store) {
    store.allocate(at::kCPU, at::kFloat, 3);
    store.allocate_training_state();
  }
  nn::ParameterStore store;
  nn::Router router;
};

class RouterScores : public testing::TestWithParam<std::pair<bool, double>> {};

TEST_P(RouterScores, AgreeWithPlainInValuesAndGradients) {
  at::manual_seed(5);
  const auto [norm, scale] = GetParam();
  const int64_t tokens = 21, dim = 10, experts = 6, top_k = 3;
  Fixture fixture({dim, experts, top_k, norm, scale});
  const at::Tensor x = random({tokens, dim}), dy = random({tokens, top_k});
  const at::Tensor bias = random({experts}).to(at::kFloat);
  at::Tensor leaf = x.to(at::kFloat).set_requires_grad(true);
  const nn::RouterOutput out = fixture.router.forward(leaf, bias, {}, {}, {});
  torch::autograd::backward({out.scores}, {dy.to(at::kFloat)});

  const at::Tensor gate = fixture.store.parameters()[0]->master.detach();
  const auto plain = [&, route_norm = norm, route_scale = scale](const Tensors& in) {
    const at::Tensor scores = at::softmax(at::mm(in[0], in[1].t()), -1).gather(1, out.expert_ids);
    return (route_norm ? scores / scores.sum(-1, true) : scores) * route_scale;
  };
  const Tensors inputs = {x.to(at::kFloat).to(at::kDouble), gate.to(at::kDouble)};
  expect_agrees({out.scores.detach(), leaf.grad(), fixture.store.parameters()[0]->grad}, plain,
                inputs, dy, at::kFloat);
  // The bias moves the selection and nothing else.
  const at::Tensor scores_TE = at::softmax(at::mm(leaf.detach(), gate.t()), -1);
  EXPECT_TRUE(at::equal(out.expert_ids, nn::select_experts(scores_TE + bias, top_k)));
  EXPECT_EQ(out.counts.sum().item<int64_t>(), tokens * top_k);
}

INSTANTIATE_TEST_SUITE_P(Variants, RouterScores,
                         testing::Values(std::pair{false, 1.0}, std::pair{true, 1.0},
                                         std::pair{true, 2.5}, std::pair{false, 16.0}));

TEST(Router, GivenIdsAreTakenAndScoresStayDifferentiable) {
  at::manual_seed(6);
  Fixture fixture({8, 4, 2, true, 1.0});
  const at::Tensor x = random({5, 8}).to(at::kFloat), bias = at::zeros({4});
  const at::Tensor ids = at::tensor({3, 1, 0, 2, 2, 3, 1, 0, 3, 0}, at::kLong).view({5, 2});
  const nn::RouterOutput out = fixture.router.forward(x, bias, {}, ids, {});
  EXPECT_TRUE(at::equal(out.expert_ids, ids));
  torch::autograd::backward({out.scores.select(1, 0).sum()});
  EXPECT_GT(fixture.store.parameters()[0]->grad.abs().max().item<float>(), 0.0f);
}

TEST(Router, PaddingIsNeitherRoutedNorCounted) {
  at::manual_seed(7);
  Fixture fixture({8, 4, 2, true, 1.0});
  const at::Tensor x = random({6, 8}).to(at::kFloat), bias = at::zeros({4});
  const at::Tensor mask = at::tensor({1, 1, 0, 1, 0, 1}, at::kLong).to(at::kBool);
  const nn::RouterOutput all = fixture.router.forward(x, bias, {}, {}, {});
  const nn::RouterOutput some = fixture.router.forward(x, bias, mask, {}, {});
  EXPECT_EQ(some.counts.sum().item<int64_t>(), 4 * 2);
  EXPECT_TRUE(at::equal(some.expert_ids.select(0, 2), at::tensor({4, 4}, at::kLong)));
  EXPECT_TRUE(at::equal(some.expert_ids.select(0, 3), all.expert_ids.select(0, 3)));
  // The padded rows' content does not reach the auxiliary loss.
  at::Tensor other = x.clone();
  other.select(0, 2).fill_(100.0);
  EXPECT_EQ(fixture.router.forward(other, bias, mask, {}, {}).aux_loss.item<float>(),
            some.aux_loss.item<float>());
}

TEST(Router, PaddingStaysOutWhenIdsAreGiven) {
  at::manual_seed(9);
  Fixture fixture({8, 4, 2, true, 1.0});
  const at::Tensor x = random({3, 8}).to(at::kFloat), bias = at::zeros({4});
  const at::Tensor mask = at::tensor({1, 0, 1}, at::kLong).to(at::kBool);
  const at::Tensor ids = at::tensor({3, 1, 0, 2, 2, 3}, at::kLong).view({3, 2});
  const nn::RouterOutput out = fixture.router.forward(x, bias, mask, ids, {});
  EXPECT_TRUE(at::equal(out.counts, at::tensor({0, 1, 1, 2}, at::kLong)));
  EXPECT_TRUE(at::equal(out.expert_ids, at::tensor({3, 1, 4, 4, 2, 3}, at::kLong).view({3, 2})));
  // What comes out can be passed back in.
  const nn::RouterOutput again = fixture.router.forward(x, bias, mask, out.expert_ids, {});
  EXPECT_TRUE(at::equal(again.expert_ids, out.expert_ids));
}

TEST(Router, NoTokensAndNothingButPaddingGiveAZeroAuxiliaryLoss) {
  Fixture fixture({8, 4, 2, true, 1.0});
  const at::Tensor bias = at::zeros({4});
  const nn::RouterOutput none = fixture.router.forward(at::zeros({0, 8}), bias, {}, {}, {});
  EXPECT_EQ(none.aux_loss.item<float>(), 0.0f);
  EXPECT_EQ(none.counts.sum().item<int64_t>(), 0);
  const at::Tensor mask = at::zeros({3}, at::kBool);
  const nn::RouterOutput padding = fixture.router.forward(at::ones({3, 8}), bias, mask, {}, {});
  EXPECT_EQ(padding.aux_loss.item<float>(), 0.0f);
  EXPECT_EQ(padding.counts.sum().item<int64_t>(), 0);
  torch::autograd::backward({none.aux_loss + padding.aux_loss});
  EXPECT_EQ(fixture.store.parameters()[0]->grad.abs().sum().item<float>(), 0.0f);
}

TEST(Router, NanLogitsSetTheErrorWord) {
  Fixture fixture({8, 4, 2, true, 1.0});
  at::Tensor x = at::ones({3, 8}), bias = at::zeros({4}), error = at::zeros({1}, at::kInt);
  fixture.router.forward(x, bias, {}, {}, error);
  EXPECT_EQ(error.item<int32_t>(), 0);
  x.select(0, 1).fill_(kNan);
  const nn::RouterOutput out = fixture.router.forward(x, bias, {}, {}, error);
  EXPECT_EQ(error.item<int32_t>(), kErrorNanLogit);
  EXPECT_EQ(out.counts.sum().item<int64_t>(), 6);
}

TEST(LoadBalanceLoss, IsOneWhenBalancedAndItsGradientIsTheDifferenceQuotient) {
  at::manual_seed(8);
  const int64_t tokens = 12, experts = 4, top_k = 2;
  const at::Tensor uniform = at::full({tokens, experts}, 1.0 / experts);
  const at::Tensor even = at::full({experts}, tokens * top_k / experts, at::kLong);
  EXPECT_NEAR(nn::load_balance_loss(uniform, even, top_k, {}).item<float>(), 1.0, 1e-6);

  const at::Tensor counts = at::tensor({11, 1, 7, 5}, at::kLong);
  at::Tensor logits = at::randn({tokens, experts}, at::kDouble).set_requires_grad(true);
  const auto loss = [&](const at::Tensor& values) {
    return nn::load_balance_loss(at::softmax(values, -1), counts, top_k, {});
  };
  torch::autograd::backward({loss(logits)});
  const double step = 1e-6;
  for (int64_t t = 0; t < tokens; t += 5) {
    for (int64_t e = 0; e < experts; ++e) {
      at::Tensor up = logits.detach().clone(), down = up.clone();
      up[t][e] += step;
      down[t][e] -= step;
      const double quotient = (loss(up).item<double>() - loss(down).item<double>()) / (2 * step);
      EXPECT_NEAR(logits.grad()[t][e].item<double>(), quotient, 1e-8);
    }
  }
}

TEST(ExpertBias, MovesAgainstTheLoadAndKeepsItsMean) {
  const at::Tensor bias = at::zeros({2, 4});
  const at::Tensor counts = at::tensor({10, 2, 4, 8, 5, 5, 5, 5}, at::kLong).view({2, 4});
  const at::Tensor next = nn::balanced_expert_bias(bias, counts, 1e-3);
  // Mean load 6: signs -1 +1 +1 -1 (mean 0); equal loads: no change.
  const at::Tensor want =
      at::tensor({-1e-3f, 1e-3f, 1e-3f, -1e-3f, 0.f, 0.f, 0.f, 0.f}).view({2, 4});
  EXPECT_TRUE(at::allclose(next, want, 0.0, 1e-9));
  const at::Tensor hot =
      nn::balanced_expert_bias(at::zeros({4}), at::tensor({12, 0, 0, 0}, at::kLong), 1e-3);
  EXPECT_TRUE(at::allclose(hot, at::tensor({-1.5e-3f, 0.5e-3f, 0.5e-3f, 0.5e-3f}), 0.0, 1e-9));
}

}  // namespace
}  // namespace amoeba::test
