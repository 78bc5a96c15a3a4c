#include "nn/loss.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>

#include "amoeba/error.h"
#include "nn/plain.h"

namespace amoeba::test {
namespace {

constexpr int64_t kTokens = 29, kDim = 12, kVocab = 37;

struct Case {
  const char* name;
  at::ScalarType dtype;
  int64_t max_chunk_bytes;
};

class Loss : public testing::TestWithParam<Case> {};

TEST_P(Loss, AgreesWithPlainInEveryChunking) {
  at::manual_seed(3);
  const at::Tensor hidden = random({kTokens, kDim}), weight = random({kVocab, kDim});
  at::Tensor targets = at::randint(kVocab, {kTokens}, at::kLong);
  targets.select(0, 0).fill_(nn::kIgnoreIndex);
  targets.select(0, 17).fill_(nn::kIgnoreIndex);
  OneParameter parameter(weight, GetParam().dtype);
  const at::Tensor x = hidden.to(GetParam().dtype);
  const nn::LossOutput out = nn::lm_head_cross_entropy(x, *parameter.handle, targets,
                                                       {1.0 / 27.0, GetParam().max_chunk_bytes});

  const auto plain = [&](const Tensors& in) {
    const at::Tensor logits = at::mm(in[0], in[1].t());
    const at::Tensor wide = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
    return at::cross_entropy_loss(wide, targets, {}, at::Reduction::Sum, nn::kIgnoreIndex) / 27.0;
  };
  const at::Tensor one = at::ones({}, at::kDouble);
  const Tensors same = run_with_gradients(plain, {hidden, weight}, one, GetParam().dtype);
  const Tensors exact = run_with_gradients(plain, {hidden, weight}, one, at::kDouble);
  const double loss = out.loss_sum.item<double>() / 27.0, want = exact[0].item<double>();
  const double allowed = 2 * std::abs(same[0].item<double>() - want) + 1e-6 * std::abs(want);
  EXPECT_NEAR(loss, want, allowed);
  const Comparison dx = compare_rows(out.dhidden, same[1], exact[1]);
  EXPECT_TRUE(dx) << "dhidden: " << dx.message;
  const Comparison dw =
      compare_rows(parameter.handle->grad.to(GetParam().dtype), same[2], exact[2]);
  EXPECT_TRUE(dw) << "weight: " << dw.message;
}

INSTANTIATE_TEST_SUITE_P(Chunks, Loss,
                         testing::Values(Case{"fp32_whole", at::kFloat, 1 << 20},
                                         Case{"fp32_one_row", at::kFloat, 1},
                                         Case{"fp32_four_rows", at::kFloat, 4 * kVocab * 4},
                                         Case{"bf16_whole", at::kBFloat16, 1 << 20},
                                         Case{"bf16_four_rows", at::kBFloat16, 4 * kVocab * 4}),
                         [](const auto& row) { return row.param.name; });

TEST(Loss, ATargetThatIsNeitherIgnoredNorInTheVocabularyIsRefused) {
  OneParameter parameter(random({kVocab, kDim}));
  const at::Tensor hidden = random({2, kDim}).to(at::kFloat);
  for (int64_t bad : {int64_t{-1}, int64_t{-101}, kVocab}) {
    const at::Tensor targets = at::full({2}, bad, at::kLong);
    EXPECT_ANY_THROW(nn::lm_head_cross_entropy(hidden, *parameter.handle, targets, {})) << bad;
  }
}

TEST(Loss, AddsToTheGradientAndLeavesItAloneWithoutGradMode) {
  at::manual_seed(4);
  OneParameter parameter(random({kVocab, kDim}));
  const at::Tensor hidden = random({kTokens, kDim}).to(at::kFloat);
  const at::Tensor targets = at::randint(kVocab, {kTokens}, at::kLong);
  const nn::LossOutput first = nn::lm_head_cross_entropy(hidden, *parameter.handle, targets, {});
  const at::Tensor once = parameter.handle->grad.clone();
  EXPECT_GT(once.abs().max().item<float>(), 0.0f);
  nn::lm_head_cross_entropy(hidden, *parameter.handle, targets, {});
  EXPECT_TRUE(at::equal(parameter.handle->grad, once + once));
  const at::NoGradGuard no_grad;
  const nn::LossOutput silent = nn::lm_head_cross_entropy(hidden, *parameter.handle, targets, {});
  EXPECT_FALSE(silent.dhidden.defined());
  EXPECT_TRUE(at::equal(parameter.handle->grad, once + once));
  EXPECT_EQ(silent.loss_sum.item<double>(), first.loss_sum.item<double>());
}

TEST(Loss, AllIgnoredIsZeroWithZeroGradients) {
  OneParameter parameter(random({kVocab, kDim}));
  const at::Tensor hidden = random({3, kDim}).to(at::kFloat);
  const nn::LossOutput out = nn::lm_head_cross_entropy(
      hidden, *parameter.handle, at::full({3}, nn::kIgnoreIndex, at::kLong), {});
  EXPECT_EQ(out.loss_sum.item<double>(), 0.0);
  EXPECT_EQ(out.dhidden.abs().max().item<float>(), 0.0f);
  EXPECT_EQ(parameter.handle->grad.abs().max().item<float>(), 0.0f);
}

TEST(Loss, ShapesThatDisagreeAreRefused) {
  OneParameter parameter(random({kVocab, kDim}));
  EXPECT_THROW(nn::lm_head_cross_entropy(random({3, kDim}).to(at::kFloat), *parameter.handle,
                                         at::zeros({4}, at::kLong), {}),
               Error);
}

}  // namespace
}  // namespace amoeba::test
