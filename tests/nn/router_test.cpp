#include "nn/router.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "base/error_word.h"
#include "nn/plain.h"

namespace amoeba::test {
namespace {

using nn::ScoreFunction;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// fp32 rows take the loop of the CPU, fp64 ones the operators that other devices run.
constexpr at::ScalarType kPaths[] = {at::kFloat, at::kDouble};

// Rows of ids hold distinct experts of [0, num_experts).
void expect_valid_ids(const at::Tensor& ids, int64_t num_experts) {
  for (int64_t t = 0; t < ids.size(0); ++t) {
    std::set<int64_t> row;
    for (int64_t k = 0; k < ids.size(1); ++k) row.insert(ids[t][k].item<int64_t>());
    EXPECT_EQ(static_cast<int64_t>(row.size()), ids.size(1)) << "token " << t;
    EXPECT_GE(*row.begin(), 0) << "token " << t;
    EXPECT_LT(*row.rbegin(), num_experts) << "token " << t;
  }
}

// Normal values with NaN and infinities, whole rows of them first.
at::Tensor broken_choice(int64_t tokens, int64_t experts) {
  at::Tensor choice = at::randn({tokens, experts});
  choice.masked_fill_(at::rand({tokens, experts}).lt(0.4), kNan);
  choice.masked_fill_(at::rand({tokens, experts}).lt(0.1), -kInfinity);
  choice.masked_fill_(at::rand({tokens, experts}).lt(0.1), kInfinity);
  choice.select(0, 0).fill_(kNan);
  choice.select(0, 1).fill_(kInfinity);
  choice.select(0, 2).fill_(-kInfinity);
  return choice;
}

TEST(SelectExperts, TiesGoToTheLowerIdAndBestComesFirst) {
  const at::Tensor choice =
      at::tensor({0.5f, 0.5f, 0.5f, 0.5f, 0.1f, 0.9f, 0.9f, 0.2f, -1.0f, -0.0f, 0.0f, -0.0f})
          .view({3, 4});
  const at::Tensor want = at::tensor({0, 1, 1, 2, 1, 2}, at::kLong).view({3, 2});
  for (at::ScalarType dtype : kPaths) {
    EXPECT_TRUE(at::equal(nn::select_experts(choice.to(dtype), 2), want)) << dtype;
  }
}

TEST(SelectExperts, NanNeverGivesABadOrRepeatedId) {
  at::manual_seed(1);
  for (int64_t experts : {1, 2, 5, 8}) {
    for (int64_t top_k = 1; top_k <= experts; ++top_k) {
      const at::Tensor choice = broken_choice(64, experts);
      const at::Tensor ids = nn::select_experts(choice, top_k);
      expect_valid_ids(ids, experts);
      EXPECT_TRUE(at::equal(nn::select_experts(choice.to(at::kDouble), top_k), ids));
    }
  }
}

TEST(SelectExperts, AgreesWithANaiveSort) {
  at::manual_seed(2);
  const at::Tensor choice = at::randint(6, {200, 9}, at::kLong).to(at::kFloat);  // many ties
  for (at::ScalarType dtype : kPaths) {
    const at::Tensor ids = nn::select_experts(choice.to(dtype), 4);
    for (int64_t t = 0; t < 200; ++t) {
      std::vector<int64_t> order = {0, 1, 2, 3, 4, 5, 6, 7, 8};
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return choice[t][a].item<float>() > choice[t][b].item<float>();
      });
      for (int64_t k = 0; k < 4; ++k)
        EXPECT_EQ(ids[t][k].item<int64_t>(), order[static_cast<size_t>(k)]);
    }
  }
}

TEST(LimitToGroups, AGroupIsWorthItsTwoBestAndEqualOnesGoToTheLower) {
  const float out = -kInfinity;
  const at::Tensor choice = at::tensor({0.9f, 0.0f, 0.0f, 0.5f, 0.5f, 0.4f, 0.2f, 0.3f, 0.3f,  //
                                        0.1f, 0.2f, 0.0f, 0.3f, 0.0f, 0.0f, 0.0f, 0.1f, 0.2f})
                                .view({2, 9});
  const at::Tensor one = at::tensor({out, out, out, 0.5f, 0.5f, 0.4f, out, out, out,  //
                                     0.1f, 0.2f, 0.0f, out, out, out, out, out, out})
                             .view({2, 9});
  const at::Tensor two = at::tensor({0.9f, 0.0f, 0.0f, 0.5f, 0.5f, 0.4f, out, out, out,  //
                                     0.1f, 0.2f, 0.0f, 0.3f, 0.0f, 0.0f, out, out, out})
                             .view({2, 9});
  EXPECT_TRUE(at::equal(nn::limit_to_groups(choice, 3, 1), one));
  EXPECT_TRUE(at::equal(nn::limit_to_groups(choice, 3, 2), two));
  EXPECT_TRUE(at::equal(nn::limit_to_groups(choice.t().contiguous().t(), 3, 2), two));
  EXPECT_TRUE(at::equal(nn::limit_to_groups(choice, 3, 3), choice));
}

// DeepSeek-V2's rule (section 2.2.2): a group is worth its best expert.
TEST(LimitToGroups, AGroupIsWorthItsBest) {
  const float out = -kInfinity;
  const at::Tensor choice =
      at::tensor({0.9f, 0.0f, 0.0f, 0.5f, 0.5f, 0.4f, 0.2f, 0.3f, 0.3f}).view({1, 9});
  const at::Tensor one = at::tensor({0.9f, 0.0f, 0.0f, out, out, out, out, out, out}).view({1, 9});
  const at::Tensor two =
      at::tensor({0.9f, 0.0f, 0.0f, 0.5f, 0.5f, 0.4f, out, out, out}).view({1, 9});
  EXPECT_TRUE(at::equal(nn::limit_to_groups(choice, 3, 1, /*num_group_best=*/1), one));
  EXPECT_TRUE(at::equal(nn::limit_to_groups(choice, 3, 2, /*num_group_best=*/1), two));
}

TEST(LimitToGroups, AnExpertOutsideNeverBeatsOneInside) {
  // Groups {1, NaN, NaN}, {NaN, NaN, NaN}, {NaN, -inf, 2}: the first and the last are kept, and
  // their NaN and -inf rank above the whole group between them.
  const at::Tensor planted =
      at::tensor({1.0f, kNan, kNan, kNan, kNan, kNan, kNan, -kInfinity, 2.0f}).view({1, 9});
  EXPECT_TRUE(at::equal(nn::select_experts(nn::limit_to_groups(planted, 3, 2), 6),
                        at::tensor({8, 0, 1, 2, 6, 7}, at::kLong).view({1, 6})));

  at::manual_seed(3);
  const int64_t tokens = 64, groups = 5, group_size = 3, limited = 2;
  const at::Tensor choice =
      nn::limit_to_groups(broken_choice(tokens, groups * group_size), groups, limited);
  const at::Tensor ids = nn::select_experts(choice, limited * group_size);
  expect_valid_ids(ids, groups * group_size);
  const at::Tensor taken = choice.gather(1, ids);
  EXPECT_TRUE(taken.ne(-kInfinity).all().item<bool>());
  EXPECT_EQ(choice.eq(-kInfinity).sum().item<int64_t>(), tokens * (groups - limited) * group_size);
}

TEST(CountExperts, CountsIntegersAndSkipsTheSentinel) {
  const at::Tensor ids = at::tensor({0, 1, 0, 4, 2, 4, 0, 1}, at::kLong).view({4, 2});
  EXPECT_TRUE(at::equal(nn::count_experts(ids, 4), at::tensor({3, 2, 1, 0}, at::kLong)));
}

constexpr nn::RouterConfig kSmall = {.dim = 8, .num_experts = 4, .top_k = 2, .route_norm = true};

struct Fixture {
  explicit Fixture(nn::RouterConfig config) : router(config, "router", 0.5, store) {
    store.allocate(at::kCPU, at::kFloat, 3);
    store.allocate_training_state();
  }
  nn::ParameterStore store;
  nn::Router router;
};

// The rule again, from the definitions, in fp64: ids by loops over plain numbers. Fails when two
// values are too near for fp32 to order them, which no case below may rest on.
std::vector<int64_t> naive_ids(const nn::RouterConfig& config, const at::Tensor& choice,
                               int64_t token) {
  const int64_t experts = config.num_experts, top_k = config.top_k;
  std::vector<int64_t> ids;
  if (config.force_balance) {
    for (int64_t k = 0; k < top_k; ++k) ids.push_back((token * top_k + k) % experts);
    return ids;
  }
  std::vector<std::pair<double, int64_t>> ranked;  // minus the value, so that sorting is best first
  const auto best_first = [&](size_t used) {
    std::sort(ranked.begin(), ranked.end());
    for (size_t i = 0; i < used && i + 1 < ranked.size(); ++i) {
      EXPECT_GT(ranked[i + 1].first - ranked[i].first, 1e-6) << "token " << token;
    }
  };
  const auto value = [&](int64_t e) { return choice[token][e].item<double>(); };
  std::set<int64_t> groups = {0};
  const int64_t group_size = experts / std::max<int64_t>(1, config.num_groups);
  if (config.num_groups > 0) {
    for (int64_t g = 0; g < config.num_groups; ++g) {
      std::vector<double> members;
      for (int64_t e = 0; e < group_size; ++e) members.push_back(value(g * group_size + e));
      std::sort(members.rbegin(), members.rend());
      ranked.emplace_back(-(members[0] + members[1]), g);
    }
    best_first(static_cast<size_t>(config.num_limited_groups));
    groups.clear();
    for (int64_t i = 0; i < config.num_limited_groups; ++i) {
      groups.insert(ranked[static_cast<size_t>(i)].second);
    }
    ranked.clear();
  }
  for (int64_t e = 0; e < experts; ++e) {
    if (groups.count(e / group_size) > 0) ranked.emplace_back(-value(e), e);
  }
  best_first(static_cast<size_t>(top_k));
  for (int64_t k = 0; k < top_k; ++k) ids.push_back(ranked[static_cast<size_t>(k)].second);
  return ids;
}

at::Tensor plain_scores(const nn::RouterConfig& config, const at::Tensor& logits) {
  return config.score_function == ScoreFunction::kSigmoid ? at::sigmoid(logits)
                                                          : at::softmax(logits, -1);
}

// One of 128 routers: a bit an option.
struct Variant {
  explicit Variant(int bits) : has_bias((bits & 32) != 0), has_mask((bits & 64) != 0) {
    config = {.dim = 10, .num_experts = 15, .top_k = 4};
    if ((bits & 1) != 0) config.score_function = ScoreFunction::kSigmoid;
    if ((bits & 2) != 0) {
      config.num_groups = 5;
      config.num_limited_groups = 2;
    }
    config.route_norm = (bits & 4) != 0;
    if ((bits & 8) != 0) config.route_scale = 2.5;
    config.force_balance = (bits & 16) != 0;
  }
  nn::RouterConfig config;
  bool has_bias, has_mask;
};

TEST(Router, EveryVariantAgreesWithANaiveOne) {
  for (int bits = 0; bits < 128; ++bits) {
    SCOPED_TRACE(bits);
    at::manual_seed(100 + bits);
    const Variant variant(bits);
    const nn::RouterConfig& config = variant.config;
    const int64_t tokens = 21, experts = config.num_experts, top_k = config.top_k;
    Fixture fixture(config);
    const at::Tensor x = random({tokens, config.dim}).to(at::kFloat);
    const at::Tensor bias =
        variant.has_bias ? random({experts}).mul(0.3).to(at::kFloat) : at::zeros({experts});
    const at::Tensor mask = variant.has_mask ? at::rand({tokens}).lt(0.7) : at::Tensor();
    const at::Tensor inside = variant.has_mask ? mask.nonzero().view({-1}) : at::arange(tokens);
    const auto& gate = *fixture.store.parameters()[0];

    // Padding is left out of the plain computation altogether.
    const Tensors inputs = {x.to(at::kDouble), gate.master.detach().to(at::kDouble)};
    const auto plain_logits = [&](const Tensors& in) {
      return at::mm(in[0].index_select(0, inside), in[1].t());
    };
    const at::Tensor choice = plain_scores(config, at::mm(inputs[0], inputs[1].t())) + bias;
    at::Tensor ids = at::full({tokens, top_k}, experts, at::kLong), counts = at::zeros({experts});
    for (int64_t i = 0; i < inside.size(0); ++i) {
      const int64_t t = inside[i].item<int64_t>();
      const std::vector<int64_t> row = naive_ids(config, choice, t);
      for (int64_t k = 0; k < top_k; ++k) {
        ids[t][k] = row[static_cast<size_t>(k)];
        counts[row[static_cast<size_t>(k)]] += 1;
      }
    }

    const auto scores_of = [&](const Tensors& in) {
      const at::Tensor all = plain_scores(config, plain_logits(in));
      const at::Tensor scores = all.gather(1, ids.index_select(0, inside));
      return (config.route_norm ? scores / scores.sum(-1, true) : scores) * config.route_scale;
    };
    const auto aux_of = [&](const Tensors& in) {
      at::Tensor all = plain_scores(config, plain_logits(in));
      if (config.score_function == ScoreFunction::kSigmoid) all = all / all.sum(-1, true);
      const at::Tensor share = counts / static_cast<double>(inside.size(0) * top_k);
      return (share.to(all.scalar_type()) * all.mean(0)).sum().view({1, 1}) * experts;
    };
    const auto z_of = [&](const Tensors& in) {
      return at::logsumexp(plain_logits(in), 1).square().mean().view({1, 1});
    };
    const auto check = [&](const auto& output, const auto& plain) {
      fixture.store.zero_grad();
      const at::Tensor leaf = x.clone().set_requires_grad(true);
      const nn::RouterOutput out = fixture.router.forward(leaf, bias, mask, {}, {});
      EXPECT_TRUE(at::equal(out.expert_ids, ids));
      EXPECT_TRUE(at::equal(out.counts, counts.to(at::kLong)));
      const at::Tensor y = output(out), dy = random(y.sizes());
      torch::autograd::backward({y}, {dy.to(at::kFloat)});
      expect_agrees({y.detach(), leaf.grad(), gate.grad}, plain, inputs, dy, at::kFloat);
    };
    check([&](const nn::RouterOutput& out) { return out.scores.index_select(0, inside); },
          scores_of);
    check([](const nn::RouterOutput& out) { return out.aux_loss.view({1, 1}); }, aux_of);
    check([](const nn::RouterOutput& out) { return out.z_loss.view({1, 1}); }, z_of);
  }
}

TEST(Router, GivenIdsAreTakenAndScoresStayDifferentiable) {
  at::manual_seed(6);
  Fixture fixture(kSmall);
  const at::Tensor x = random({5, 8}).to(at::kFloat), bias = at::zeros({4});
  const at::Tensor ids = at::tensor({3, 1, 0, 2, 2, 3, 1, 0, 3, 0}, at::kLong).view({5, 2});
  const nn::RouterOutput out = fixture.router.forward(x, bias, {}, ids, {});
  EXPECT_TRUE(at::equal(out.expert_ids, ids));
  torch::autograd::backward({out.scores.select(1, 0).sum()});
  EXPECT_GT(fixture.store.parameters()[0]->grad.abs().max().item<float>(), 0.0f);
}

TEST(Router, ForceBalanceGoesRoundAndGivenIdsComeFirst) {
  at::manual_seed(10);
  nn::RouterConfig config = kSmall;
  config.num_experts = 5;
  config.force_balance = true;
  Fixture fixture(config);
  const at::Tensor x = random({6, 8}).to(at::kFloat), bias = random({5}).to(at::kFloat);
  const nn::RouterOutput out = fixture.router.forward(x, bias, {}, {}, {});
  EXPECT_TRUE(at::equal(out.expert_ids,
                        at::tensor({0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1}, at::kLong).view({6, 2})));
  const at::Tensor ids = at::tensor({3, 1, 0, 2, 2, 2, 1, 0, 3, 0, 4, 4}, at::kLong).view({6, 2});
  EXPECT_TRUE(at::equal(fixture.router.forward(x, bias, {}, ids, {}).expert_ids, ids));
}

TEST(Router, ARecomputationGivesTheSameBits) {
  at::manual_seed(11);
  const int64_t tokens = 40;
  for (int bits = 0; bits < 8; ++bits) {
    SCOPED_TRACE(bits);
    nn::RouterConfig config = {.dim = 8, .num_experts = 6, .top_k = 3, .route_norm = true};
    if ((bits & 1) != 0) config.score_function = ScoreFunction::kSigmoid;
    if ((bits & 2) != 0) {
      config.num_groups = 3;
      config.num_limited_groups = 2;
    }
    const at::Tensor mask = (bits & 4) != 0 ? at::rand({tokens}).lt(0.7) : at::Tensor();
    Fixture fixture(config);
    // Small integers, and every gate row three times: half of the choices are ties.
    at::Tensor master = fixture.store.parameters()[0]->master.detach();
    master.copy_(at::randint(-2, 3, {1, 2, 8}, at::kLong).expand({3, 2, 8}).reshape({6, 8}));
    const at::Tensor x = at::randint(-2, 3, {tokens, 8}, at::kLong).to(at::kFloat);
    const at::Tensor bias = at::zeros({6});
    const nn::RouterOutput first = fixture.router.forward(x, bias, mask, {}, {});
    const nn::RouterOutput again = fixture.router.forward(x, bias, mask, {}, {});
    const nn::RouterOutput given = fixture.router.forward(x, bias, mask, first.expert_ids, {});
    for (const nn::RouterOutput& other : {again, given}) {
      EXPECT_TRUE(at::equal(other.expert_ids, first.expert_ids));
      EXPECT_TRUE(at::equal(other.counts, first.counts));
      EXPECT_TRUE(at::equal(other.aux_loss, first.aux_loss));
      EXPECT_TRUE(at::equal(other.z_loss, first.z_loss));
    }
    EXPECT_TRUE(at::equal(again.scores, first.scores));
    const at::Tensor inside =
        mask.defined() ? mask.nonzero().view({-1}) : at::arange(tokens);  // padding: no meaning
    EXPECT_TRUE(
        at::equal(given.scores.index_select(0, inside), first.scores.index_select(0, inside)));
    EXPECT_TRUE(at::equal(bias, at::zeros({6})));
  }
}

TEST(Router, PaddingIsNeitherRoutedNorCounted) {
  at::manual_seed(7);
  Fixture fixture(kSmall);
  const at::Tensor x = random({6, 8}).to(at::kFloat), bias = at::zeros({4});
  const at::Tensor mask = at::tensor({1, 1, 0, 1, 0, 1}, at::kLong).to(at::kBool);
  const nn::RouterOutput all = fixture.router.forward(x, bias, {}, {}, {});
  const nn::RouterOutput some = fixture.router.forward(x, bias, mask, {}, {});
  EXPECT_EQ(some.counts.sum().item<int64_t>(), 4 * 2);
  EXPECT_TRUE(at::equal(some.expert_ids.select(0, 2), at::tensor({4, 4}, at::kLong)));
  EXPECT_TRUE(at::equal(some.expert_ids.select(0, 3), all.expert_ids.select(0, 3)));
  // The padded rows' content reaches neither the losses nor the error word.
  for (float content : {100.0f, kInfinity, kNan}) {
    at::Tensor other = x.clone(), error = at::zeros({1}, at::kInt);
    other.select(0, 2).fill_(content);
    const nn::RouterOutput out = fixture.router.forward(other, bias, mask, {}, error);
    EXPECT_TRUE(at::equal(out.aux_loss, some.aux_loss)) << content;
    EXPECT_TRUE(at::equal(out.z_loss, some.z_loss)) << content;
    EXPECT_EQ(error.item<int32_t>(), 0) << content;
  }
}

TEST(Router, PaddingStaysOutWhenIdsAreGiven) {
  at::manual_seed(9);
  Fixture fixture(kSmall);
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

TEST(Router, NoTokensAndNothingButPaddingGiveZeroLosses) {
  for (ScoreFunction function : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
    nn::RouterConfig config = kSmall;
    config.score_function = function;
    config.num_groups = 2;
    config.num_limited_groups = 1;
    Fixture fixture(config);
    const at::Tensor bias = at::zeros({4}), mask = at::zeros({3}, at::kBool);
    const nn::RouterOutput none = fixture.router.forward(at::zeros({0, 8}), bias, {}, {}, {});
    const nn::RouterOutput padding = fixture.router.forward(at::ones({3, 8}), bias, mask, {}, {});
    for (const nn::RouterOutput& out : {none, padding}) {
      EXPECT_EQ(out.aux_loss.item<float>(), 0.0f);
      EXPECT_EQ(out.z_loss.item<float>(), 0.0f);
      EXPECT_EQ(out.counts.sum().item<int64_t>(), 0);
    }
    EXPECT_EQ(none.expert_ids.sizes(), (std::vector<int64_t>{0, 2}));
    torch::autograd::backward({none.aux_loss + padding.aux_loss + none.z_loss + padding.z_loss});
    EXPECT_EQ(fixture.store.parameters()[0]->grad.abs().sum().item<float>(), 0.0f);
  }
}

TEST(Router, NanLogitsSetTheErrorWordAndGiveValidIds) {
  for (ScoreFunction function : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
    for (int64_t groups : {0, 2}) {
      nn::RouterConfig config = kSmall;
      config.score_function = function;
      config.num_groups = groups;
      config.num_limited_groups = groups / 2;
      Fixture fixture(config);
      at::Tensor x = at::ones({3, 8}), bias = at::zeros({4}), error = at::zeros({1}, at::kInt);
      fixture.router.forward(x, bias, {}, {}, error);
      EXPECT_EQ(error.item<int32_t>(), 0);
      x.select(0, 1).fill_(kNan);
      bias.select(0, 1).fill_(kNan);
      const nn::RouterOutput out = fixture.router.forward(x, bias, {}, {}, error);
      EXPECT_EQ(error.item<int32_t>(), kErrorNanLogit);
      EXPECT_EQ(out.counts.sum().item<int64_t>(), 6);
      expect_valid_ids(out.expert_ids, 4);
    }
  }
}

TEST(Router, SigmoidScoresThatVanishStayFinite) {
  nn::RouterConfig config = kSmall;
  config.score_function = ScoreFunction::kSigmoid;
  Fixture fixture(config);
  fixture.store.parameters()[0]->master.detach().fill_(-100.0);  // sigmoid(-800) is 0 in fp32
  const nn::RouterOutput out = fixture.router.forward(at::ones({3, 8}), at::zeros({4}), {}, {}, {});
  EXPECT_TRUE(at::equal(out.scores, at::zeros({3, 2})));
  EXPECT_EQ(out.aux_loss.item<float>(), 0.0f);
  torch::autograd::backward({out.scores.sum() + out.aux_loss});
  EXPECT_EQ(fixture.store.parameters()[0]->grad.abs().sum().item<float>(), 0.0f);
}

TEST(Router, RefusesSizesThatDoNotFit) {
  struct Line {
    int64_t experts, top_k, groups, limited;
    const char* message;  // "" when legal
  };
  const Line lines[] = {
      {12, 12, 0, 0, ""},
      {12, 6, 4, 2, ""},
      {12, 1, 6, 1, ""},
      {12, 12, 1, 1, ""},
      {12, 13, 0, 0, "top_k is 13, want 1 to the 12 experts that a token can choose from"},
      {12, 0, 0, 0, "top_k is 0, want 1 to the 12 experts"},
      {12, 7, 4, 2, "top_k is 7, want 1 to the 6 experts"},
      {12, 2, 5, 2, "num_groups is 5, want a divisor of the 12 experts, or 0 (off)"},
      {12, 2, -4, 2, "num_groups is -4, want a divisor"},
      {12, 2, 12, 2, "num_groups is 12 for 12 experts, want at least 2 experts a group"},
      {12, 2, 4, 0, "num_limited_groups is 0, want 1 to num_groups, which is 4"},
      {12, 2, 4, 5, "num_limited_groups is 5, want 1 to num_groups, which is 4"},
      {12, 2, 0, 1, "num_limited_groups is 1, want 0 to num_groups, which is 0"},
  };
  for (const Line& line : lines) {
    const nn::RouterConfig config = {.dim = 8,
                                     .num_experts = line.experts,
                                     .top_k = line.top_k,
                                     .num_groups = line.groups,
                                     .num_limited_groups = line.limited};
    std::string message;
    try {
      Fixture fixture(config);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      message = error.what();
    }
    const std::string want = line.message;
    EXPECT_EQ(message.empty(), want.empty()) << message << " for " << want;
    EXPECT_NE(message.find(want), std::string::npos) << message << " for " << want;
  }
}

// The gradient of loss(logits) by autograd against difference quotients, both in fp64.
template <typename Loss>
void expect_difference_quotients(const at::Tensor& logits, const Loss& loss) {
  const at::Tensor leaf = logits.clone().set_requires_grad(true);
  torch::autograd::backward({loss(leaf)});
  const double step = 1e-6;
  for (int64_t t = 0; t < logits.size(0); ++t) {
    for (int64_t e = 0; e < logits.size(1); ++e) {
      at::Tensor up = logits.clone(), down = logits.clone();
      up[t][e] += step;
      down[t][e] -= step;
      const double quotient =
          (loss(up).template item<double>() - loss(down).template item<double>()) / (2 * step);
      EXPECT_NEAR(leaf.grad()[t][e].template item<double>(), quotient, 1e-8);
    }
  }
}

TEST(LoadBalanceLoss, IsOneWhenBalancedAndItsGradientIsTheDifferenceQuotient) {
  at::manual_seed(8);
  const int64_t tokens = 12, experts = 4, top_k = 2;
  const at::Tensor uniform = at::full({tokens, experts}, 1.0 / experts);
  const at::Tensor even = at::full({experts}, tokens * top_k / experts, at::kLong);
  EXPECT_NEAR(nn::load_balance_loss(uniform, even, top_k, {}).item<float>(), 1.0, 1e-6);

  const at::Tensor counts = at::tensor({11, 1, 7, 5}, at::kLong);
  expect_difference_quotients(at::randn({tokens, experts}, at::kDouble), [&](const at::Tensor& in) {
    return nn::load_balance_loss(at::softmax(in, -1), counts, top_k, {});
  });
}

TEST(RouterZLoss, IsTheMeanSquareOfLogSumExpAndItsGradientIsTheDifferenceQuotient) {
  at::manual_seed(12);
  const at::Tensor planted = at::tensor({0.0f, 0.0f, 0.0f, 3.0f, 3.0f, 3.0f}).view({2, 3});
  const double log3 = std::log(3.0);
  EXPECT_NEAR(nn::router_z_loss(planted, {}).item<double>(),
              (log3 * log3 + (3 + log3) * (3 + log3)) / 2, 1e-6);
  const at::Tensor mask = at::tensor({1, 0, 1, 1, 0}, at::kLong).to(at::kBool);
  const at::Tensor logits = at::randn({5, 4}, at::kDouble);
  for (const at::Tensor& taken : {at::Tensor(), mask}) {
    expect_difference_quotients(logits,
                                [&](const at::Tensor& in) { return nn::router_z_loss(in, taken); });
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

TEST(ExpertBias, FollowsTheRuleToTheBit) {
  at::manual_seed(13);
  const int64_t layers = 3, experts = 8;
  const double coeff = 1.0 / 1024;  // every step below is exact in fp32
  const at::Tensor bias = at::randint(-64, 65, {layers, experts}, at::kLong).div(4096.0);
  at::Tensor counts = at::randint(40, {layers, experts}, at::kLong);
  counts.select(0, 1).fill_(7);
  const at::Tensor before = bias.clone();
  const at::Tensor next = nn::balanced_expert_bias(bias, counts, coeff);
  for (int64_t layer = 0; layer < layers; ++layer) {
    double total = 0, centre = 0;
    std::vector<double> delta;
    for (int64_t e = 0; e < experts; ++e) total += counts[layer][e].item<double>();
    for (int64_t e = 0; e < experts; ++e) {
      const double difference = total / experts - counts[layer][e].item<double>();
      delta.push_back(coeff * ((difference > 0) - (difference < 0)));
      centre += delta.back() / experts;
    }
    for (int64_t e = 0; e < experts; ++e) {
      EXPECT_EQ(next[layer][e].item<double>(),
                bias[layer][e].item<double>() + delta[static_cast<size_t>(e)] - centre);
    }
  }
  EXPECT_TRUE(at::equal(bias, before));  // a new tensor, not an update in place
  // Counts that fp32 cannot tell apart.
  const int64_t large = int64_t{1} << 24;
  EXPECT_TRUE(at::equal(
      nn::balanced_expert_bias(at::zeros({2}), at::tensor({large, large + 1}, at::kLong), 0.5),
      at::tensor({0.5f, -0.5f})));
}

}  // namespace
}  // namespace amoeba::test
