// The layers that CUDA computes in one pass each, on the card against the plain computation on the
// CPU: widths that are and are not a multiple of a 16-byte access, few and many rows.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "nn/operators.h"
#include "nn/plain.h"
#include "nn/rms_norm.h"
#include "nn/rope.h"
#include "nn/swiglu.h"

namespace amoeba::test {
namespace {

class CardLayers : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!at::globalContext().hasCUDA()) GTEST_SKIP() << "no GPU is visible to LibTorch";
    ASSERT_EQ(nn::load_cuda_operators(), "");
    at::manual_seed(7);
  }
};

// Of values that the dtype under test holds.
at::Tensor random_in(at::IntArrayRef sizes, at::ScalarType dtype) {
  return random(sizes).to(dtype).to(at::kDouble);
}

TEST_P(CardLayers, RmsNormAgreesWithPlain) {
  for (const auto& [rows, dim] :
       {std::pair<int64_t, int64_t>{1, 8}, {67, 24}, {130, 33}, {33, 520}, {1100, 2048}}) {
    for (const bool residual : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << dim << (residual ? " residual" : ""));
      const at::Tensor x = random_in({rows, dim}, GetParam()),
                       dy = random_in({rows, dim}, GetParam());
      const at::Tensor weight = random_in({dim}, at::kFloat);
      OneParameter parameter(weight, at::kFloat, at::kCUDA);
      const auto card = [&](const Tensors& in) {
        const at::Tensor on_card = in[0].to(at::kCUDA);
        EXPECT_TRUE(nn::has_card_layers(on_card));
        const auto [same, normed] = nn::rms_norm_residual(on_card, *parameter.handle, 1e-5);
        return (residual ? same + normed : normed).to(at::kCPU);
      };
      const auto plain = [&](const Tensors& in) {
        const at::Tensor wide = in[0].scalar_type() == at::kDouble ? in[0] : in[0].to(at::kFloat);
        const at::Tensor normed =
            (wide * (wide.square().mean(-1, true) + 1e-5).rsqrt() * in[1].to(wide.scalar_type()))
                .to(in[0].scalar_type());
        return residual ? in[0] + normed : normed;
      };
      const Tensors got = run_with_gradients(card, {x}, dy, GetParam());
      // The weight stays fp32 whatever the dtype.
      const auto reference = [&](at::ScalarType dtype) {
        at::Tensor w = weight.to(dtype == at::kDouble ? at::kDouble : at::kFloat);
        w.set_requires_grad(true);
        Tensors out = run_with_gradients(
            [&](const Tensors& in) {
              return plain({in[0], w});
            },
            {x}, dy, dtype);
        out.push_back(w.grad());
        return out;
      };
      const Tensors same = reference(GetParam()), exact = reference(at::kDouble);
      const at::Tensor dweight = parameter.handle->grad.cpu();
      const Tensors all = {got[0], got[1], dweight};
      for (size_t i = 0; i < all.size(); ++i) {
        const Comparison result = compare_rows(all[i], same[i], exact[i]);
        EXPECT_TRUE(result) << (i == 0 ? "y: " : i == 1 ? "dx: " : "dweight: ") << result.message;
      }
      parameter.handle->grad.zero_();
      const Tensors again = run_with_gradients(card, {x}, dy, GetParam());
      EXPECT_TRUE(at::equal(again[0], got[0]) && at::equal(again[1], got[1]) &&
                  at::equal(parameter.handle->grad.cpu(), dweight));
    }
  }
}

TEST_P(CardLayers, RopeAgreesWithTheCpu) {
  for (const auto& [heads, width, turned] :
       {std::tuple<int64_t, int64_t, int64_t>{3, 24, 8}, {1, 64, 64}, {16, 192, 64}}) {
    SCOPED_TRACE(testing::Message() << heads << " x " << width << ", " << turned);
    const nn::RopeTable table = nn::make_rope_table({.head_dim = turned}, 50, at::kCPU);
    const nn::RopeTable on_card = {table.cos.cuda(), table.sin.cuda()};
    const at::Tensor positions = at::randint(50, {37}, at::kLong);
    const at::Tensor x = random_in({37, heads, width}, GetParam());
    const at::Tensor dy = random_in({37, heads, width}, GetParam());
    const auto card = [&, size = turned](const Tensors& in) {
      const at::Tensor moved = in[0].to(at::kCUDA);
      EXPECT_TRUE(nn::has_card_rope(moved, size));
      return nn::rope(moved, on_card, positions.cuda()).to(at::kCPU);
    };
    const auto plain = [&, size = width, half = turned / 2](const Tensors& in) {
      const at::ScalarType wide = in[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      const at::Tensor pairs =
          in[0].narrow(2, size - 2 * half, 2 * half).to(wide).unflatten(2, {half, 2});
      const at::Tensor cos = table.cos.index_select(0, positions).unsqueeze(1).to(wide);
      const at::Tensor sin = table.sin.index_select(0, positions).unsqueeze(1).to(wide);
      const at::Tensor a = pairs.select(3, 0), b = pairs.select(3, 1);
      const at::Tensor turned_part =
          at::stack({a * cos - b * sin, a * sin + b * cos}, 3).flatten(2);
      return at::cat({in[0].narrow(2, 0, size - 2 * half), turned_part.to(in[0].scalar_type())}, 2);
    };
    expect_agrees(run_with_gradients(card, {x}, dy, GetParam()), plain, {x}, dy, GetParam());
  }
}

TEST_P(CardLayers, SwigluAgreesWithPlain) {
  for (const auto& [rows, hidden] :
       {std::pair<int64_t, int64_t>{1, 8}, {37, 19}, {5, 1032}, {300, 1408}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << hidden);
    const at::Tensor x = random_in({rows, 2 * hidden}, GetParam()) * 4;
    const at::Tensor dy = random_in({rows, hidden}, GetParam());
    const auto card = [](const Tensors& in) {
      return nn::swiglu(in[0].to(at::kCUDA)).to(at::kCPU);
    };
    const auto plain = [&, size = hidden](const Tensors& in) {
      const at::Tensor gate = in[0].narrow(1, 0, size), up = in[0].narrow(1, size, size);
      return gate * at::sigmoid(gate) * up;
    };
    expect_agrees(run_with_gradients(card, {x}, dy, GetParam()), plain, {x}, dy, GetParam());
  }
}

TEST_P(CardLayers, CrossEntropyAgreesWithPlain) {
  for (const auto& [rows, vocab] :
       {std::pair<int64_t, int64_t>{2, 8}, {29, 37}, {50, 264}, {9, 5000}, {7, 30011}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << vocab);
    const at::Tensor logits = random_in({rows, vocab}, at::kFloat) * 3;
    at::Tensor targets = at::randint(vocab, {rows}, at::kLong);
    targets.select(0, 0).fill_(vocab - 1);
    targets.select(0, rows - 1).fill_(-100);
    const at::Tensor on_card = logits.to(at::kFloat).cuda();
    at::Tensor dlogits = at::full({rows, vocab}, std::numeric_limits<double>::quiet_NaN(),
                                  on_card.options().dtype(GetParam()));
    const at::Tensor losses = nn::card_cross_entropy(on_card, targets.cuda(), dlogits);
    const auto plain = [&, n = rows](at::ScalarType dtype) {
      const at::Tensor log_p = at::log_softmax(logits.to(dtype), 1);
      const at::Tensor safe = targets.clamp_min(0).unsqueeze(1);
      at::Tensor p = log_p.exp();
      p.scatter_add_(1, safe, at::full({n, 1}, -1.0, p.options()));
      at::Tensor loss = log_p.gather(1, safe).neg();
      p.select(0, n - 1).zero_();
      loss.select(0, n - 1).zero_();
      return Tensors{loss, p};
    };
    const Tensors same = plain(at::kFloat), exact = plain(at::kDouble);
    const Comparison loss = compare_rows(losses.cpu().unsqueeze(1), same[0], exact[0]);
    EXPECT_TRUE(loss) << "losses: " << loss.message;
    const Comparison gradient = compare_rows(dlogits.cpu(), same[1].to(GetParam()), exact[1]);
    EXPECT_TRUE(gradient) << "dlogits: " << gradient.message;
    EXPECT_TRUE(at::equal(nn::card_cross_entropy(on_card, targets.cuda(), {}), losses));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CardLayers, testing::Values(at::kFloat, at::kHalf, at::kBFloat16),
                         [](const auto& row) { return std::string(c10::toString(row.param)); });

TEST(CardLoss, ABadTargetGivesALossThatIsNoNumberAndNoGradient) {
  if (!at::globalContext().hasCUDA()) GTEST_SKIP() << "no GPU is visible to LibTorch";
  ASSERT_EQ(nn::load_cuda_operators(), "");
  const at::Tensor logits = random({3, 40}).to(at::kFloat).cuda();
  const at::Tensor targets = at::full({3}, 40, at::kLong).cuda();
  at::Tensor dlogits = at::full({3, 40}, 7.0, logits.options());
  const at::Tensor losses = nn::card_cross_entropy(logits, targets, dlogits);
  EXPECT_TRUE(losses.isnan().all().item<bool>());
  EXPECT_TRUE(at::equal(dlogits, at::zeros_like(dlogits)));
}

}  // namespace
}  // namespace amoeba::test
