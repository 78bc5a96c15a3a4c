// The tokens entry of the fused backend: against a naive computation in fp64, against the composed
// path around for_loop, and what it does to buffers, statistics and the error word.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "amoeba/error.h"
#include "base/error_word.h"
#include "nn/dispatch.h"
#include "nn/plain.h"
#include "nn/router.h"
#include "support/torch/cases.h"

namespace amoeba::test {
namespace {

// T tokens, K choices per token, E experts, D model width, H hidden width.
struct TokenCase {
  const char* name;
  int64_t tokens, top_k, experts, dim, hidden;
  int64_t lowest_id, highest_id;  // ids are drawn from these; E and -1: skipped
  bool score_before = false;
};

const TokenCase kCases[] = {
    {"mixed", 37, 3, 5, 40, 24, 0, 4},
    {"score_before", 37, 3, 5, 40, 24, 0, 4, true},
    {"skipped", 29, 2, 6, 16, 24, -1, 6},
    {"skipped_score_before", 29, 2, 6, 16, 24, -1, 6, true},
    {"one_hot_expert", 31, 2, 7, 24, 16, 3, 3},
    {"empty_experts", 23, 4, 9, 8, 40, 2, 5},
    {"odd_sizes", 19, 3, 5, 7, 11, 0, 5},
    {"one_token", 1, 3, 4, 40, 56, 0, 3},
    {"nothing_routed", 6, 2, 3, 24, 16, 3, 3},
    {"no_tokens", 0, 2, 3, 24, 16, 0, 2},
};

struct TokenInputs {
  at::Tensor x, ids, scores, dy;  // [T, D], [T, K], [T, K], [T, D]
  nn::ExpertWeights weights;      // in the dtype of x
  bool score_before;

  Tensors list() const {
    const auto& [w1, w2, w3] = weights;
    return {x, scores, w1, w2, w3};
  }
};

TokenInputs make_token_inputs(const TokenCase& c, at::ScalarType dtype, bool of_integers = false) {
  ExpertCase experts{c.name,  c.experts, c.dim, c.hidden, std::vector<int64_t>(c.experts, 0),
                     c.tokens};
  const ExpertInputs made = of_integers ? make_integer_inputs(experts, dtype, at::kCPU)
                                        : make_inputs(experts, dtype, at::kCPU);
  at::manual_seed(31);
  const at::Tensor ids = at::randint(c.lowest_id, c.highest_id + 1, {c.tokens, c.top_k}, at::kLong);
  const at::Tensor scores =
      of_integers ? at::randint(1, 3, ids.sizes(), at::kFloat).mul_(0.5) : at::rand(ids.sizes());
  return {made.x, ids, scores, made.dy, made.weights, c.score_before};
}

// What a run leaves: y, then the gradients of x, scores, w1, w2, w3.
struct TokenRun {
  Tensors results;
  nn::ExpertStats stats;
  int32_t error_word = 0;
};

// Weight gradients are added to `start`.
TokenRun run_tokens(const TokenInputs& inputs, double start = 0.0) {
  const auto leaf = [](const at::Tensor& tensor) {
    return tensor.detach().clone().requires_grad_();
  };
  const auto& [w1, w2, w3] = inputs.weights;
  const auto sum = [&](const at::Tensor& w) { return at::full(w.sizes(), start, at::kFloat); };
  const nn::ExpertParameters parameters = {
      inputs.weights,
      {leaf(w1.to(at::kFloat)), leaf(w2.to(at::kFloat)), leaf(w3.to(at::kFloat))},
      {sum(w1), sum(w2), sum(w3)}};
  const at::Tensor x = leaf(inputs.x), scores = leaf(inputs.scores);
  const at::Tensor error_word = at::zeros({1}, at::kInt);
  TokenRun run;
  const at::Tensor y =
      nn::run_expert_tokens(backend_named("fused"), {x, inputs.ids, scores, inputs.score_before},
                            parameters, run.stats, error_word);
  y.backward(inputs.dy);
  for (const at::Tensor& master : {parameters.master.w1, parameters.master.w2}) {
    EXPECT_FALSE(master.grad().defined());  // gradients went into the buffers alone
  }
  const auto& [dw1, dw2, dw3] = parameters.grad;
  run.results = {y.detach(), x.grad(), scores.grad(), dw1, dw2, dw3};
  run.error_word = error_word.item<int32_t>();
  return run;
}

// Every expert computes every token; slots of other experts are left out of the sum.
at::Tensor plain_tokens(const TokenInputs& inputs, const Tensors& in) {
  const at::Tensor &x = in[0], &scores = in[1];
  at::Tensor y = x * 0 + scores.sum() * 0;
  for (size_t w = 2; w < 5; ++w) y = y + in[w].sum() * 0;
  for (int64_t k = 0; k < inputs.ids.size(1); ++k) {
    const at::Tensor score = scores.narrow(1, k, 1);
    for (int64_t e = 0; e < in[2].size(0); ++e) {
      const at::Tensor rows = inputs.score_before ? x * score : x;
      const at::Tensor gate = at::mm(rows, in[2][e].t());
      at::Tensor out = at::mm(gate * at::sigmoid(gate) * at::mm(rows, in[4][e].t()), in[3][e].t());
      if (!inputs.score_before) out = out * score;
      y = y + at::where(inputs.ids.narrow(1, k, 1).eq(e), out, 0.0);
    }
  }
  return y;
}

TEST(FusedTokens, AgreeWithThePlainComputation) {
  const NanFilledMemory nan_filled;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const TokenCase& c : kCases) {
      SCOPED_TRACE(cat(c.name, " ", dtype));
      const TokenInputs inputs = make_token_inputs(c, dtype);
      const auto plain = [&](const Tensors& in) { return plain_tokens(inputs, in); };
      const TokenRun run = run_tokens(inputs);
      EXPECT_EQ(run.error_word, 0);
      const Tensors same = run_with_gradients(plain, inputs.list(), inputs.dy, dtype);
      const Tensors exact = run_with_gradients(plain, inputs.list(), inputs.dy, at::kDouble);
      ASSERT_EQ(run.results.size(), same.size());
      for (size_t i = 0; i < same.size(); ++i) {  // gradients of scores and weights are fp32
        const at::Tensor got = run.results[i];
        const Comparison result = compare_rows(got, same[i].to(got.scalar_type()), exact[i]);
        EXPECT_TRUE(result) << "result " << i << ": " << result.message;
      }
    }
  }
}

// Small integers, scores 1/2 and 1: gather, products, sums and gradients are exact in both.
TEST(FusedTokens, EqualTheComposedPathToTheBitOnIntegers) {
  const NanFilledMemory nan_filled;
  for (const TokenCase& c : kCases) {
    if (c.tokens < 2 || c.lowest_id < 0 || c.score_before) continue;
    SCOPED_TRACE(c.name);
    const TokenInputs inputs = make_token_inputs(c, at::kFloat, /*of_integers=*/true);
    Tensors leaves;
    for (const at::Tensor& tensor : inputs.list()) {
      leaves.push_back(tensor.detach().clone().requires_grad_());
    }
    const nn::Routes routes = nn::sort_by_expert(inputs.ids, c.experts);
    nn::ExpertStats stats;
    const at::Tensor rows = nn::run_expert_rows(
        backend_named("for_loop"), nn::gather_rows(leaves[0], routes),
        nn::count_experts(inputs.ids, c.experts), {leaves[2], leaves[3], leaves[4]}, {}, stats);
    const at::Tensor y = nn::combine_rows(rows, leaves[1], routes);
    y.backward(inputs.dy);
    Tensors want = {y.detach()};
    for (const at::Tensor& tensor : leaves) want.push_back(tensor.grad());
    const TokenRun run = run_tokens(inputs);
    const TokenRun added = run_tokens(inputs, /*start=*/3.0);
    for (size_t i = 0; i < want.size(); ++i) {
      SCOPED_TRACE(i);
      Comparison same = compare_exact(run.results[i], want[i]);
      EXPECT_TRUE(same) << same.message;
      same = compare_exact(added.results[i], i < 3 ? want[i] : want[i].add(3.0));
      EXPECT_TRUE(same) << same.message;
    }
  }
}

TEST(FusedTokens, GiveTheSameBitsForOneAndTwoThreadsAndWhenRepeated) {
  const int num_threads = at::get_num_threads();
  const TokenCase c = {"threads", 700, 3, 5, 136, 96, 0, 4};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const TokenInputs inputs = make_token_inputs(c, dtype);
    at::set_num_threads(1);
    const TokenRun one = run_tokens(inputs);
    at::set_num_threads(2);
    for (int repeat = 0; repeat < 2; ++repeat) {
      const TokenRun two = run_tokens(inputs);
      for (size_t i = 0; i < one.results.size(); ++i) {
        const Comparison same = compare_exact(two.results[i], one.results[i]);
        EXPECT_TRUE(same) << i << ": " << same.message;
      }
    }
  }
  at::set_num_threads(num_threads);
}

// Without gradients nothing is kept, and the output is the same to the bit; frozen weights leave
// the gradients of x and scores as they are.
TEST(FusedTokens, EvaluateAndFreezeWithTheSameBits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const TokenCase& c : kCases) {
      SCOPED_TRACE(cat(c.name, " ", dtype));
      const TokenInputs inputs = make_token_inputs(c, dtype);
      const TokenRun trained = run_tokens(inputs);
      const nn::ExpertParameters frozen = {inputs.weights, inputs.weights, {}};
      nn::ExpertStats stats;
      const auto run = [&](const at::Tensor& x, const at::Tensor& scores) {
        return nn::run_expert_tokens(backend_named("fused"),
                                     {x, inputs.ids, scores, inputs.score_before}, frozen, stats);
      };
      EXPECT_TRUE(compare_exact(run(inputs.x, inputs.scores), trained.results[0]));
      EXPECT_EQ(stats.saved_bytes, 0);
      const at::Tensor x = inputs.x.detach().clone().requires_grad_();
      const at::Tensor scores = inputs.scores.detach().clone().requires_grad_();
      run(x, scores).backward(inputs.dy);
      EXPECT_TRUE(compare_exact(x.grad(), trained.results[1]));
      EXPECT_TRUE(compare_exact(scores.grad(), trained.results[2]));
      const at::NoGradGuard no_grad;
      EXPECT_FALSE(run(x, scores).requires_grad());
    }
  }
}

TEST(FusedTokens, CountWorkAndMemory) {
  const TokenCase c = {"stats", 11, 2, 3, 24, 16, 0, 2};
  const TokenRun run = run_tokens(make_token_inputs(c, at::kFloat));
  EXPECT_EQ(run.stats.calls, 1);
  EXPECT_EQ(run.stats.rows, 22);
  EXPECT_EQ(run.stats.padded_rows, 22);
  EXPECT_EQ(run.stats.host_syncs, 0);
  // Gate and up of each row, the lanes of each expert; offsets, row_slot and slot_row.
  EXPECT_EQ(run.stats.saved_bytes, (22 + 15 * 3) * 2 * 16 * 4 + 512 + (4 + 22 + 22) * 4);
}

TEST(FusedTokens, BadIdsAreSkippedAndSaidInTheErrorWord) {
  const TokenCase c = {"ids", 11, 2, 3, 24, 16, 0, 2};
  TokenInputs bad = make_token_inputs(c, at::kFloat), skipped = bad;
  bad.ids = bad.ids.clone();
  skipped.ids = bad.ids.clone();
  for (const int64_t id : {4, -2, 1 << 20}) {
    bad.ids[5][1] = id;
    skipped.ids[5][1] = -1;
    const TokenRun run = run_tokens(bad), want = run_tokens(skipped);
    EXPECT_EQ(run.error_word, kErrorBadId) << id;
    EXPECT_EQ(want.error_word, 0);
    for (size_t i = 0; i < want.results.size(); ++i) {
      EXPECT_TRUE(compare_exact(run.results[i], want.results[i])) << id << ", result " << i;
    }
  }
}

TEST(FusedTokens, RefuseGradientsOfGradients) {
  const TokenInputs inputs = make_token_inputs(kCases[0], at::kFloat);
  nn::ExpertStats stats;
  const at::Tensor x = inputs.x.detach().clone().requires_grad_();
  const at::Tensor y =
      nn::run_expert_tokens(backend_named("fused"), {x, inputs.ids, inputs.scores, false},
                            {inputs.weights, inputs.weights, {}}, stats);
  EXPECT_THROW(y.backward(inputs.dy, /*retain_graph=*/true, /*create_graph=*/true), Error);
}

TEST(FusedTokens, AreRefusedWithAReason) {
  EXPECT_EQ(nn::refuse_tokens(backend_named("fused"), false), "");
  EXPECT_EQ(nn::refuse_tokens(backend_named("fused"), true),
            "output_postprocess works on the rows between the experts and their sum");
  EXPECT_EQ(nn::refuse_tokens(backend_named("for_loop"), false), "takes rows only");
}

TEST(FusedTokens, NameTheArgumentThatDoesNotFit) {
  const TokenInputs good = make_token_inputs({"good", 7, 2, 3, 8, 16, 0, 2}, at::kFloat);
  const auto message_of = [](const TokenInputs& inputs) -> std::string {
    nn::ExpertStats stats;
    try {
      nn::run_expert_tokens(backend_named("fused"), {inputs.x, inputs.ids, inputs.scores, false},
                            {inputs.weights, inputs.weights, {}}, stats);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "accepted";
  };
  TokenInputs bad = good;
  bad.ids = good.ids.to(at::kInt);
  EXPECT_EQ(message_of(bad), "experts: expert_ids is Int [7, 2] on cpu, want Long [7, K] on cpu");
  bad = good;
  bad.scores = good.scores.narrow(1, 0, 1);
  EXPECT_EQ(message_of(bad), "experts: scores is Float [7, 1] on cpu, want Float [7, 2] on cpu");
  bad = good;
  bad.weights.w2 = good.weights.w3;
  EXPECT_EQ(message_of(bad), "experts: w2 is [3, 16, 8], want [3, 8, 16]");
}

}  // namespace
}  // namespace amoeba::test
