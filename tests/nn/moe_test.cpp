// The Mixture-of-Experts layer against a naive one in fp64; the
// cases with given ids are those of the origin's test of route-wise post-processing.
#include "nn/moe.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <string>
#include <vector>

#include "amoeba/error.h"
#include "nn/plain.h"
#include "support/torch/cases.h"

namespace amoeba::test {
namespace {

constexpr int64_t kDim = 40, kHidden = 56;  // rows that grouped_mm takes

enum class Hook { kNone, kRows, kAfterCombine };  // kAfterCombine: the wrong place

// Not zero at zero, so that a skipped slot would show.
at::Tensor apply_hook(const at::Tensor& rows, const at::Tensor& factor) {
  return at::tanh(rows * factor + 0.5);
}

struct Layer {
  nn::MoeConfig config;
  at::Tensor factor = random({kDim}).to(at::kFloat).set_requires_grad(true);  // of the hook
  nn::ParameterStore store;
  std::unique_ptr<nn::Moe> moe;

  Layer(const nn::RouterConfig& router, bool score_before, int64_t num_shared, Hook hook) {
    config.router = router;
    config.hidden_dim = kHidden;
    config.num_shared_experts = num_shared;
    config.score_before_experts = score_before;
    config.experts.capacity_factor = 100.0;  // nothing is dropped
    if (hook == Hook::kRows) {
      config.output_postprocess = [factor = factor](const at::Tensor& rows) {
        return apply_hook(rows, factor);
      };
    }
    moe = std::make_unique<nn::Moe>(config, "moe", nn::LayerInit{0.15, 0.15}, store);
    store.allocate(at::kCPU, at::kFloat, 3);
    store.allocate_training_state();
  }

  nn::MoeOutput forward(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& mask,
                        const at::Tensor& ids, std::string_view backend = "for_loop") {
    nn::ExpertStats stats;
    return moe->forward(x, bias, mask, ids, {}, backend_named(backend), stats);
  }

  // x, factor, then the parameters in order: gate, w1, w2, w3, shared w1, w3, w2.
  Tensors inputs(const at::Tensor& x) const {
    Tensors all = {x, factor.detach()};
    for (const auto& parameter : store.parameters()) all.push_back(parameter->master.detach());
    for (at::Tensor& tensor : all) tensor = tensor.to(at::kDouble);
    return all;
  }

  // y and the gradient of every one of inputs().
  Tensors run(const at::Tensor& x, const at::Tensor& dy, const at::Tensor& mask,
              const at::Tensor& ids, std::string_view backend) {
    store.zero_grad();
    factor.mutable_grad() = at::zeros({kDim});
    const at::Tensor leaf = x.clone().set_requires_grad(true);
    const at::Tensor bias = at::zeros({config.router.num_experts});
    const at::Tensor y = forward(leaf, bias, mask, ids, backend).y;
    torch::autograd::backward({y}, {dy.to(at::kFloat)});
    Tensors results = {y.detach(), leaf.grad(), factor.grad()};
    for (const auto& parameter : store.parameters()) results.push_back(parameter->grad);
    return results;
  }
};

at::Tensor plain_ffn(const at::Tensor& rows, const at::Tensor& w1, const at::Tensor& w2,
                     const at::Tensor& w3) {
  const at::Tensor gate = at::mm(rows, w1.t());
  return at::mm(gate * at::sigmoid(gate) * at::mm(rows, w3.t()), w2.t());
}

// Inputs as in Layer::inputs; ids [T, K], E: skipped. Every expert computes every token, and what
// a slot did not choose is left out of the sum.
at::Tensor plain_moe(const nn::MoeConfig& config, Hook hook, const at::Tensor& ids,
                     const Tensors& in) {
  const nn::RouterConfig& router = config.router;
  const at::Tensor& x = in[0];
  const at::Tensor logits = at::mm(x, in[2].t());
  at::Tensor scores = router.score_function == nn::ScoreFunction::kSigmoid
                          ? at::sigmoid(logits)
                          : at::softmax(logits, -1);
  scores = scores.gather(1, ids.clamp_max(router.num_experts - 1));  // [T, K]
  if (router.route_norm) scores = scores / scores.sum(1, true);
  at::Tensor y = x * 0;
  for (int64_t k = 0; k < router.top_k; ++k) {
    const at::Tensor score = scores.narrow(1, k, 1);
    for (int64_t e = 0; e < router.num_experts; ++e) {
      const bool before = config.score_before_experts;
      at::Tensor rows = plain_ffn(before ? x * score : x, in[3][e], in[4][e], in[5][e]);
      if (hook == Hook::kRows) rows = apply_hook(rows, in[1]);
      if (!before) rows = rows * score;
      y = y + at::where(ids.narrow(1, k, 1).eq(e), rows, 0.0);
    }
  }
  if (hook == Hook::kAfterCombine) y = apply_hook(y, in[1]);
  if (config.num_shared_experts > 0) y = y + plain_ffn(x, in[6], in[8], in[7]);
  return y + in[1].sum() * 0;  // without a hook its factor has a zero gradient, not none
}

// The choices of three tokens, which a batch repeats.
struct GivenIds {
  const char* name;
  std::vector<int64_t> ids;     // [3, 2]
  std::vector<int64_t> inside;  // [3], 0 or 1; empty: no mask
};

const GivenIds kGivenIds[] = {
    {"balanced", {0, 1, 1, 2, 2, 0}, {}},
    {"one expert empty", {0, 2, 2, 0, 0, 2}, {}},
    {"one expert twice for a token", {2, 1, 2, 2, 2, 0}, {}},
    {"padding", {0, 1, 1, 2, 2, 0}, {1, 0, 1}},
    {"padding with one expert twice", {2, 2, 1, 1, 0, 2}, {1, 1, 0}},
};

class MoeHook : public testing::TestWithParam<bool> {};  // score before the experts

TEST_P(MoeHook, RowsAreWorkedOnBeforeTheyAreSummed) {
  NanFilledMemory nan_filled;
  at::manual_seed(21);
  const nn::RouterConfig router = {.dim = kDim, .num_experts = 3, .top_k = 2};
  const int64_t tokens = 48;
  for (Hook hook : {Hook::kNone, Hook::kRows}) {
    for (const GivenIds& given : kGivenIds) {
      Layer layer(router, GetParam(), /*num_shared=*/0, hook);
      const at::Tensor x = random({tokens, kDim}).to(at::kFloat), dy = random({tokens, kDim});
      const at::Tensor ids = at::tensor(given.ids, at::kLong).view({3, 2}).repeat({tokens / 3, 1});
      at::Tensor mask, taken = ids;
      if (!given.inside.empty()) {
        mask = at::tensor(given.inside, at::kLong).to(at::kBool).repeat({tokens / 3});
        taken = at::where(mask.unsqueeze(1), ids, 3);
      }
      const Tensors inputs = layer.inputs(x);
      const auto plain = [&](const Tensors& in) {
        return plain_moe(layer.config, hook, taken, in);
      };
      for (const nn::ExpertBackend& backend : nn::expert_backends()) {
        SCOPED_TRACE(cat(given.name, ", ", backend.name, hook == Hook::kRows ? ", hook" : ""));
        const Tensors actual = layer.run(x, dy, mask, ids, backend.name);
        expect_agrees(actual, plain, inputs, dy, at::kFloat);
        if (hook == Hook::kNone) continue;
        const auto wrong = [&](const Tensors& in) {
          return plain_moe(layer.config, Hook::kAfterCombine, taken, in);
        };
        EXPECT_FALSE(compare_rows(actual[0], run_with_gradients(wrong, inputs, dy, at::kFloat)[0],
                                  run_with_gradients(wrong, inputs, dy, at::kDouble)[0]));
      }
    }
  }
}

TEST_P(MoeHook, WholeLayersAgreeWithPlain) {
  NanFilledMemory nan_filled;
  at::manual_seed(22);
  for (auto function : {nn::ScoreFunction::kSoftmax, nn::ScoreFunction::kSigmoid}) {
    for (int64_t num_shared : {0, 2}) {
      for (Hook hook : {Hook::kNone, Hook::kRows}) {
        SCOPED_TRACE(cat("shared ", num_shared, hook == Hook::kRows ? ", hook" : ""));
        Layer layer({.dim = kDim,
                     .num_experts = 5,
                     .top_k = 3,
                     .score_function = function,
                     .route_norm = true},
                    GetParam(), num_shared, hook);
        const int64_t tokens = 61;
        const at::Tensor x = random({tokens, kDim}).to(at::kFloat), dy = random({tokens, kDim});
        const at::Tensor ids = layer.forward(x, at::zeros({5}), {}, {}).expert_ids;
        const auto plain = [&](const Tensors& in) {
          return plain_moe(layer.config, hook, ids, in);
        };
        for (const char* backend : {"fused", "for_loop"}) {
          expect_agrees(layer.run(x, dy, {}, {}, backend), plain, layer.inputs(x), dy, at::kFloat);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Scores, MoeHook, testing::Bool(), [](const auto& row) {
  return std::string(row.param ? "BeforeExperts" : "AfterExperts");
});

TEST(Moe, RefusesAHookThatChangesTheRows) {
  Layer layer({.dim = kDim, .num_experts = 3, .top_k = 2}, false, 0, Hook::kNone);
  layer.config.output_postprocess = [](const at::Tensor& rows) { return rows.narrow(1, 0, 5); };
  nn::ParameterStore store;
  const nn::Moe moe(layer.config, "moe", {0.15, 0.15}, store);
  store.allocate(at::kCPU, at::kFloat, 3);
  nn::ExpertStats stats;
  try {
    moe.forward(random({4, kDim}).to(at::kFloat), at::zeros({3}), {}, {}, {},
                backend_named("for_loop"), stats);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_STREQ(error.what(),
                 "output_postprocess: the result is Float [8, 5], want Float [8, 40]");
  }
}

// Small integers and every gate row twice: many choices are ties.
struct Tied : Layer {
  explicit Tied(bool score_before)
      : Layer({.dim = kDim, .num_experts = 6, .top_k = 3, .route_norm = true}, score_before, 2,
              Hook::kRows) {
    at::manual_seed(23);
    store.parameters()[0]->master.detach().copy_(
        at::randint(-2, 3, {1, 3, kDim}, at::kLong).expand({2, 3, kDim}).reshape({6, kDim}));
    x = at::randint(-2, 3, {17, kDim}, at::kLong).to(at::kFloat);
    mask = at::randint(4, {17}, at::kLong).gt(0);
  }
  at::Tensor x, mask, bias = at::zeros({6});
};

TEST_P(MoeHook, ARecomputationGivesTheSameBits) {
  Tied layer(GetParam());
  const auto run = [&](const at::Tensor& ids) {
    layer.store.zero_grad();
    const at::Tensor leaf = layer.x.clone().set_requires_grad(true);
    nn::MoeOutput out = layer.forward(leaf, layer.bias, layer.mask, ids);
    torch::autograd::backward({out.y.square().sum() + out.aux_loss + out.z_loss});
    return std::pair(out, Tensors{leaf.grad(), layer.store.parameters()[0]->grad.clone()});
  };
  const auto [first, first_gradients] = run({});
  EXPECT_EQ(first.counts.sum().item<int64_t>(), layer.mask.sum().item<int64_t>() * 3);
  for (const at::Tensor& ids : {at::Tensor(), first.expert_ids}) {
    const auto [again, gradients] = run(ids);
    EXPECT_TRUE(at::equal(again.y, first.y));
    EXPECT_TRUE(at::equal(again.expert_ids, first.expert_ids));
    EXPECT_TRUE(at::equal(again.counts, first.counts));  // not added up
    EXPECT_TRUE(at::equal(again.aux_loss, first.aux_loss));
    EXPECT_TRUE(at::equal(again.z_loss, first.z_loss));
    EXPECT_TRUE(at::equal(gradients[0], first_gradients[0]));
    EXPECT_TRUE(at::equal(gradients[1], first_gradients[1]));
  }
}

TEST_P(MoeHook, EvaluationLeavesTheBiasAlone) {
  Tied layer(GetParam());
  layer.bias = random({6}).to(at::kFloat);
  const at::Tensor before = layer.bias.clone();
  const nn::MoeOutput trained = layer.forward(layer.x, layer.bias, layer.mask, {});
  const at::NoGradGuard no_grad;
  const nn::MoeOutput evaluated = layer.forward(layer.x, layer.bias, layer.mask, {});
  EXPECT_TRUE(at::equal(layer.bias, before));
  EXPECT_TRUE(at::equal(evaluated.y, trained.y));
  EXPECT_TRUE(at::equal(evaluated.counts, trained.counts));
}

}  // namespace
}  // namespace amoeba::test
