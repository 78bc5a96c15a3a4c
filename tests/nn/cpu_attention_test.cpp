#include "nn/cpu_attention/attention.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/full.h>

#include "nn/plain.h"
#include "nn/plain_attention.h"

namespace amoeba::test {
namespace {

using nn::cpu_attention::supported_kernels;

struct Case {
  const char* name;
  int64_t heads, kv_heads, key_dim, value_dim;
  double scale;
  std::vector<int64_t> lengths;
};

int64_t num_tokens(const Case& c) {
  int64_t tokens = 0;
  for (const int64_t length : c.lengths) tokens += length;
  return tokens;
}

nn::SequenceLayout layout_of(const Case& c) {
  nn::SequenceLayout layout{1, num_tokens(c), {}, {}};
  int64_t begin = 0;
  for (const int64_t length : c.lengths) {
    layout.segments.push_back({0, begin, length});
    begin += length;
  }
  return layout;
}

// Heads of q, k and v as columns of one product, so that rows are far apart.
struct Heads {
  Heads(const Case& c, const at::Tensor& joined)
      : q(columns(joined, 0, c.heads, c.key_dim)),
        k(columns(joined, c.heads * c.key_dim, c.kv_heads, c.key_dim)),
        v(columns(joined, (c.heads + c.kv_heads) * c.key_dim, c.kv_heads, c.value_dim)) {}
  static at::Tensor columns(const at::Tensor& joined, int64_t begin, int64_t heads, int64_t width) {
    return joined.narrow(1, begin, heads * width).unflatten(1, {heads, width});
  }
  at::Tensor q, k, v;
};

at::Tensor joined_input(const Case& c) {
  return random({num_tokens(c), (c.heads + c.kv_heads) * c.key_dim + c.kv_heads * c.value_dim});
}

at::Tensor attend(const nn::cpu_attention::Kernels& kernels, const Case& c, const Heads& in) {
  return nn::cpu_attention::attend(kernels, in.q, in.k, in.v, c.value_dim, c.scale, c.lengths);
}

class CpuAttention : public testing::TestWithParam<Case> {};

TEST_P(CpuAttention, AgreesWithPlainInOutputAndGradients) {
  at::manual_seed(21);
  const Case& c = GetParam();
  if (supported_kernels().empty()) GTEST_SKIP() << "this CPU has no kernels";
  const at::Tensor joined = joined_input(c);
  const at::Tensor dy = random({num_tokens(c), c.heads * c.value_dim});
  for (const auto* kernels : supported_kernels()) {
    const Tensors actual =
        run_with_gradients([&](const Tensors& in) { return attend(*kernels, c, Heads(c, in[0])); },
                           {joined}, dy, at::kFloat);
    expect_agrees(
        actual,
        [&](const Tensors& in) {
          const Heads heads(c, in[0]);
          return plain_product(heads.q, heads.k, heads.v, c.scale, layout_of(c));
        },
        {joined}, dy, at::kFloat);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, CpuAttention,
                         testing::Values(Case{"one_token", 2, 1, 6, 5, 0.4, {1, 2}},
                                         Case{"narrow_values", 4, 2, 10, 7, 0.3, {21, 33}},
                                         Case{"wide_values", 3, 3, 9, 40, 0.3, {30}},
                                         Case{"blocks", 4, 2, 32, 32, 0.2, {64, 31, 65}},
                                         Case{"one_kv_head", 5, 1, 48, 64, 0.15, {97}},
                                         Case{"latent", 2, 2, 192, 128, 0.07, {40, 8}},
                                         Case{"far_from_uniform", 2, 1, 16, 24, 6.0, {70}}),
                         [](const auto& row) { return row.param.name; });

TEST(CpuAttentionBits, AreTheSameForEveryNumberOfThreads) {
  at::manual_seed(22);
  const Case c{"", 4, 2, 24, 16, 0.2, {50, 3, 90, 17}};
  const at::Tensor joined = joined_input(c), dy = random({num_tokens(c), c.heads * c.value_dim});
  const int threads = at::get_num_threads();
  for (const auto* kernels : supported_kernels()) {
    std::vector<Tensors> results;
    for (const int num_threads : {1, 2, 3}) {
      at::set_num_threads(num_threads);
      results.push_back(run_with_gradients(
          [&](const Tensors& in) { return attend(*kernels, c, Heads(c, in[0])); }, {joined}, dy,
          at::kFloat));
    }
    for (size_t i = 0; i < results[0].size(); ++i) {
      EXPECT_TRUE(compare_exact(results[1][i], results[0][i]));
      EXPECT_TRUE(compare_exact(results[2][i], results[0][i]));
    }
  }
  at::set_num_threads(threads);
}

TEST(CpuAttentionChoice, TakesFp32WithValuesSideBySide) {
  const at::Tensor x = at::full({3, 2, 4}, 1.0f);
  EXPECT_EQ(nn::cpu_attention::kernels_for(x, x, x),
            supported_kernels().empty() ? nullptr : supported_kernels()[0]);
  EXPECT_EQ(nn::cpu_attention::kernels_for(x.to(at::kBFloat16), x, x), nullptr);
  EXPECT_EQ(nn::cpu_attention::kernels_for(x, x.to(at::kDouble), x), nullptr);
  EXPECT_EQ(nn::cpu_attention::kernels_for(x, x, x.transpose(1, 2)), nullptr);
}

}  // namespace
}  // namespace amoeba::test
