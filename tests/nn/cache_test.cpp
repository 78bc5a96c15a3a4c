// Cached keys and values give the logits of reading everything again, by the per-row rule: tokens
// appended one by one or several at once, rows of different lengths together, tokens forgotten.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include "amoeba/error.h"
#include "amoeba/model.h"
#include "support/errors.h"
#include "support/torch/compare.h"

namespace amoeba::test {
namespace {

constexpr int64_t kContext = 14, kVocab = 29;

nn::ModelConfig model_config(bool mla) {
  nn::ModelConfig config;
  config.vocab_size = kVocab;
  config.num_layers = 3;
  config.num_dense_layers = 1;
  config.dense_hidden_dim = 20;
  config.max_seq_len = kContext;
  config.init_std = 0.3;
  config.attention.dim = config.moe.router.dim = 16;
  config.attention.num_heads = 4;
  if (mla) {
    config.attention.mla = nn::MlaConfig{7, 9, 6, 4, 5};
    config.attention.rope.head_dim = 4;
  } else {
    config.attention.num_kv_heads = 2;
    config.attention.head_dim = config.attention.rope.head_dim = 6;
    config.attention.qk_norm = true;
  }
  config.moe.router.num_experts = 5;
  config.moe.router.top_k = 2;
  config.moe.hidden_dim = 12;
  config.moe.num_shared_experts = 1;
  config.compute_backend = "for_loop";
  return config;
}

// hidden [T, D] -> logits [T, V] in the model's dtype.
at::Tensor head(const nn::Model& model, const at::Tensor& hidden) {
  return at::mm(hidden, model.lm_head().compute.t());
}

class Cache : public testing::TestWithParam<bool> {
 protected:
  Cache()
      : model_(model_config(GetParam()), at::kCPU, at::kFloat, 5),
        exact_(model_config(GetParam()), at::kCPU, at::kDouble, 5),
        caches_(model_.make_caches(3, kContext)) {
    at::manual_seed(11);
    tokens_ = at::randint(kVocab, {3, kContext}, at::kLong);
  }

  // Logits of row `row`'s first `size` tokens, read at once.
  at::Tensor whole(nn::Model& model, int64_t row, int64_t size) {
    nn::ModelInput input;
    input.tokens = tokens_.select(0, row).narrow(0, 0, size).contiguous();
    input.layout = {1, size, at::arange(size, at::kLong), {}};
    return head(model, model.forward(input).hidden);
  }

  // Appends the next `each` tokens of `rows`; logits [rows * each, V].
  at::Tensor read(const std::vector<int64_t>& rows, int64_t each) {
    std::vector<at::Tensor> tokens, positions;
    for (const int64_t row : rows) {
      const int64_t begin = caches_[0].lengths[static_cast<size_t>(row)];
      tokens.push_back(tokens_.select(0, row).narrow(0, begin, each));
      positions.push_back(at::arange(begin, begin + each, at::kLong));
    }
    nn::ModelInput input;
    input.tokens = at::cat(tokens);
    input.layout = {static_cast<int64_t>(rows.size()), each, at::cat(positions), {}, rows};
    return head(model_, model_.forward(input, &caches_).hidden);
  }

  // The last `actual.size(0)` of the first `size` tokens of `row`.
  void expect_logits(const at::Tensor& actual, int64_t row, int64_t size) {
    const int64_t count = actual.size(0);
    const auto last = [&](const at::Tensor& all) { return all.narrow(0, size - count, count); };
    const Comparison result =
        compare_rows(actual, last(whole(model_, row, size)), last(whole(exact_, row, size)));
    EXPECT_TRUE(result) << "row " << row << " up to " << size << ": " << result.message;
  }

  const at::NoGradGuard no_grad_;
  nn::Model model_, exact_;
  std::vector<nn::KvCache> caches_;
  at::Tensor tokens_;  // [3, kContext]
};

INSTANTIATE_TEST_SUITE_P(Kinds, Cache, testing::Bool(),
                         [](const auto& row) { return row.param ? "mla" : "gqa"; });

TEST_P(Cache, AppendsOneOrSeveralTokens) {
  int64_t size = 0;
  for (const int64_t each : {4, 1, 1, 5, 2, 1}) {
    size += each;
    expect_logits(read({1}, each), 1, size);
  }
  EXPECT_EQ(caches_[2].lengths, (std::vector<int64_t>{0, kContext, 0}));
}

TEST_P(Cache, RowsOfDifferentLengthsTogether) {
  read({0}, 7);
  read({1}, 2);
  read({2}, 5);
  for (int64_t step = 1; step <= 3; ++step) {
    const at::Tensor logits = read({2, 0, 1}, 1);
    expect_logits(logits.narrow(0, 0, 1), 2, 5 + step);
    expect_logits(logits.narrow(0, 1, 1), 0, 7 + step);
    expect_logits(logits.narrow(0, 2, 1), 1, 2 + step);
  }
  const at::Tensor several = read({1, 2}, 3);
  expect_logits(several.narrow(0, 0, 3), 1, 8);
  expect_logits(several.narrow(0, 3, 3), 2, 11);
}

// What other rows hold changes no bit.
TEST_P(Cache, RowsDoNotTouchEachOther) {
  read({0}, 6);
  const at::Tensor alone = read({0}, 1);
  for (nn::KvCache& cache : caches_) {
    cache.lengths[0] = 6;
    cache.keys.narrow(0, 1, 2).fill_(NAN);
    cache.values.narrow(0, 1, 2).fill_(NAN);
  }
  EXPECT_TRUE(at::equal(read({0}, 1), alone));
}

TEST_P(Cache, ForgetsWhatIsBehindItsLength) {
  read({0}, 9);
  for (nn::KvCache& cache : caches_) {
    cache.lengths[0] = 4;
    cache.keys.narrow(2, 4, kContext - 4).fill_(NAN);
    cache.values.narrow(2, 4, kContext - 4).fill_(NAN);
  }
  expect_logits(read({0}, 3), 0, 7);
  for (nn::KvCache& cache : caches_) cache.lengths[0] = 0;
  expect_logits(read({0}, 5), 0, 5);
}

TEST_P(Cache, Refuses) {
  read({2}, kContext - 1);
  EXPECT_EQ(error_message(ErrorKind::kUsage,
                          [&] {
                            nn::ModelInput input;
                            input.tokens = at::arange(2, at::kLong);
                            input.layout = {1, 2, at::arange(2, at::kLong), {}, {2}};
                            model_.forward(input, &caches_);
                          }),
            "attention: the cache holds 14 positions, want 15");
  const auto with_rows = [&](std::vector<int64_t> rows, std::vector<nn::Segment> segments) {
    nn::ModelInput input;
    input.tokens = at::arange(2, at::kLong);
    input.layout = {2, 1, at::arange(2, at::kLong), std::move(segments), std::move(rows)};
    return error_message(ErrorKind::kUsage, [&] { model_.forward(input, &caches_); });
  };
  EXPECT_EQ(with_rows({0}, {}), "attention: got 1 cache rows for 2 sequences");
  EXPECT_EQ(with_rows({0, 3}, {}), "attention: cache row is 3, want 0 to 2");
  EXPECT_EQ(with_rows({0, 1}, {{0, 0, 1}, {1, 0, 1}}),
            "attention: got 2 segments with a cache, want none");
}

}  // namespace
}  // namespace amoeba::test
