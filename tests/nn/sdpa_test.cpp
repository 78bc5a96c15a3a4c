#include "nn/sdpa.h"

#include <ATen/Context.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include <iostream>

#include "amoeba/error.h"
#include "nn/cpu_attention/attention.h"
#include "nn/plain.h"
#include "nn/plain_attention.h"
#include "support/errors.h"
#include "support/torch/memory.h"

namespace amoeba::test {
namespace {

constexpr int64_t kKeyDim = 192, kValueDim = 128;  // DeepSeek-V2's heads
constexpr int64_t kMiB = int64_t{1} << 20;

struct Heads {
  Heads(int64_t tokens, int64_t heads, int64_t value_width, at::ScalarType dtype) {
    const auto leaf = [&](int64_t width) {
      return at::randn({tokens, heads, width}, dtype).set_requires_grad(true);
    };
    q = leaf(kKeyDim);
    k = leaf(kKeyDim);
    v = leaf(value_width);
  }
  at::Tensor q, k, v;
};

at::Tensor padded(const Heads& in) {
  const at::Tensor zeros =
      at::zeros({in.v.size(0), in.v.size(1), kKeyDim - kValueDim}, in.v.options());
  return nn::causal_attention(in.q, in.k, at::cat({in.v, zeros}, 2), kValueDim, 0.07,
                              {1, in.q.size(0), {}, {}}, nullptr);
}

at::Tensor unpadded(const Heads& in) {
  const auto heads = [](const at::Tensor& x) { return x.unsqueeze(0).transpose(1, 2); };
  return at::scaled_dot_product_attention(heads(in.q), heads(in.k), heads(in.v), {}, 0.0, true,
                                          0.07)
      .transpose(1, 2)
      .reshape({in.q.size(0), -1});
}

TEST(Sdpa, CpuValuesArePaddedToTheKeys) {
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Heads in(33, 2, kValueDim, dtype);
    // Kernels of our own take any width.
    const bool has_own = nn::cpu_attention::kernels_for(in.q, in.k, in.v) != nullptr;
    const int64_t width = has_own ? kValueDim : kKeyDim;
    EXPECT_EQ(nn::value_width(in.q, kValueDim), width) << dtype;
    EXPECT_EQ(nn::value_width(in.q.detach(), kValueDim), width) << dtype;
    EXPECT_EQ(nn::value_width(in.q, kKeyDim), kKeyDim) << dtype;
  }
}

TEST(Sdpa, PaddedValuesTakeTheFusedKernel) {
  at::manual_seed(17);
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Heads in(33, 2, kValueDim, dtype);
    const at::Tensor y = padded(in);
    EXPECT_EQ(y.sizes(), (at::IntArrayRef{33, 2 * kValueDim}));
    EXPECT_TRUE(ran_flash(y) || ran_own_kernels(y)) << dtype;
    EXPECT_FALSE(ran_flash(unpadded(in))) << dtype << ": the padding has become needless";
  }
}

TEST(Sdpa, ValuesOfEitherWidthAgreeWithPlainInOutputAndGradients) {
  at::manual_seed(18);
  const nn::SequenceLayout layout{1, 21, {}, {}};
  // One query for all tokens: the first token's own gradient is exactly zero in plain.
  const at::Tensor q = random({1, 3, 10}), k = random({21, 3, 10}), v = random({21, 3, 7});
  const at::Tensor dy = random({21, 21});
  for (const auto& [dtype, padding] :
       {std::pair{at::kFloat, 3}, {at::kFloat, 0}, {at::kBFloat16, 3}, {at::kBFloat16, 0}}) {
    const auto fused = [&, padding = padding](const Tensors& in) {
      const at::Tensor zeros = at::zeros({21, 3, padding}, in[2].options());
      return nn::causal_attention(in[0].expand({21, 3, 10}), in[1], at::cat({in[2], zeros}, 2), 7,
                                  0.3, layout, nullptr);
    };
    const auto plain = [&](const Tensors& in) {
      return plain_product(in[0].expand({21, 3, 10}), in[1], in[2], 0.3, layout);
    };
    const Tensors actual = run_with_gradients(fused, {q, k, v}, dy, dtype);
    expect_agrees(actual, plain, {q, k, v}, dy, dtype);
  }
}

TEST(Sdpa, RefusesSegmentsThatLeaveAGapOrCrossARow) {
  const at::Tensor x = at::zeros({12, 1, 4});
  const auto run = [&](std::vector<nn::Segment> segments) {
    return error_message(ErrorKind::kUsage, [&] {
      nn::causal_attention(x, x, x, 4, 1.0, {2, 6, {}, std::move(segments)}, nullptr);
    });
  };
  EXPECT_EQ(run({{0, 0, 4}, {1, 0, 6}}),
            "attention: segment 1 covers tokens 6 to 12, want it to start at 4 and to end in its "
            "row");
  EXPECT_EQ(run({{0, 0, 7}, {1, 1, 5}}),
            "attention: segment 0 covers tokens 0 to 7, want it to start at 0 and to end in its "
            "row");
}

// Peak bytes of forward and backward above the inputs and their gradients.
int64_t peak_of(at::Tensor (*attention)(const Heads&), const Heads& in) {
  CountedMemory memory;
  const at::Tensor y = attention(in);
  torch::autograd::backward({y}, {at::ones_like(y)});
  const int64_t gradients = static_cast<int64_t>(in.q.nbytes() + in.k.nbytes() + in.v.nbytes());
  return memory.peak_bytes() - gradients;
}

void expect_less_memory(int64_t tokens, int64_t heads, int64_t factor) {
  const int64_t with = peak_of(padded, Heads(tokens, heads, kValueDim, at::kFloat));
  const int64_t without = peak_of(unpadded, Heads(tokens, heads, kValueDim, at::kFloat));
  std::cout << "attention forward and backward, S " << tokens << ", " << heads
            << " heads of 192/128, fp32: peak " << with / kMiB << " MiB with v padded, "
            << without / kMiB << " MiB without\n";
  EXPECT_LT(with * factor, without);
}

TEST(SdpaMemory, PaddingAvoidsTheScoreMatrix) { expect_less_memory(1024, 4, 2); }

// test_nn --gtest_filter='SdpaMemory*' --gtest_also_run_disabled_tests
TEST(SdpaMemory, DISABLED_RealShape) { expect_less_memory(2048, 16, 2); }

}  // namespace
}  // namespace amoeba::test
