#include "train/optimizer.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "nn/operators.h"

namespace amoeba::test {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

class AdamW : public testing::TestWithParam<at::DeviceType> {
 protected:
  void SetUp() override {
    if (GetParam() == at::kCPU) return;
    if (!at::globalContext().hasCUDA()) GTEST_SKIP() << "no GPU is visible to LibTorch";
    ASSERT_EQ(nn::load_cuda_operators(), "");
  }
  at::Tensor number(double value) const {
    return at::full({}, value, at::device(GetParam()).dtype(at::kDouble));
  }
  at::Tensor flag(bool value) const {
    return at::full({}, value, at::device(GetParam()).dtype(at::kBool));
  }
};

struct Fixture {
  explicit Fixture(at::Device device) {
    store.declare("a", {6}, nn::ones_init(), true);
    store.declare("b", {3}, nn::ones_init(), false);
    store.allocate(device, at::kFloat, 1);
    store.allocate_training_state();
    store.groups()[0].master.copy_(at::tensor({1.f, -2.f, 3.f, 0.5f, -0.25f, 4.f}));
  }
  at::Tensor values() const {
    return at::cat({store.groups()[0].master, store.groups()[1].master}).cpu();
  }
  nn::ParameterStore store;
};

// torch 2.13: torch.optim.AdamW with two groups (decay 0.1 and 0), betas (0.9, 0.95), lr 0.01 t,
// and clip_grad_norm_(2.0), gradients a_i = ((7 i + 3 t) % 11 - 5) / 2, b_i = ((5 i + 2 t) % 7 - 3)
// / 4.
struct TracePoint {
  double norm;
  std::vector<float> values;
};
const std::vector<TracePoint> kTrace = {
    {3.8242645263671875,
     {1.0090001f, -2.0080001f, 2.987f, 0.50950003f, -0.25975001f, 3.9960001f, 1.01f, 1.01f,
      0.99000001f}},
    {3.665719509124756,
     {1.0120132f, -2.0074618f, 2.9636252f, 0.52205396f, -0.25775567f, 3.973309f, 1.0085251f,
      1.0277232f, 0.99530113f}},
    {4.175823211669922,
     {0.99585825f, -2.0055237f, 2.9516973f, 0.51898855f, -0.25223783f, 3.9673774f, 0.99106318f,
      1.0422305f, 1.0059514f}},
    {3.9528470039367676,
     {0.99656153f, -2.0119512f, 2.9405229f, 0.53339231f, -0.253714f, 3.9653437f, 0.98696202f,
      1.0385544f, 1.0115423f}},
    {3.9764935970306396,
     {1.0009747f, -1.9978726f, 2.9176877f, 0.55542284f, -0.27125442f, 3.9556816f, 0.98257202f,
      1.0459613f, 1.0001236f}},
};

TEST_P(AdamW, FollowsTorchsTrace) {
  Fixture fixture(GetParam());
  train::AdamW optimizer(fixture.store, {1.0, 0.9, 0.95, 1e-8, 0.1});
  for (int t = 1; t <= 5; ++t) {
    for (int i = 0; i < 6; ++i) {
      fixture.store.groups()[0].grad.select(0, i).fill_(((i * 7 + t * 3) % 11 - 5) / 2.0);
    }
    for (int i = 0; i < 3; ++i) {
      fixture.store.groups()[1].grad.select(0, i).fill_(((i * 5 + t * 2) % 7 - 3) / 4.0);
    }
    const train::OptimizerStep step =
        optimizer.step(number(0.01 * t), 2.0, number(kNoLimit), flag(false));
    const TracePoint& want = kTrace[static_cast<size_t>(t - 1)];
    EXPECT_NEAR(step.grad_norm.item<double>(), want.norm, 1e-6);
    EXPECT_FALSE(step.rejected.item<bool>());
    EXPECT_TRUE(at::allclose(fixture.values(), at::tensor(want.values), 1e-6, 1e-7)) << t;
    EXPECT_EQ(optimizer.num_steps().item<double>(), t);
  }
}

TEST_P(AdamW, RejectedStepsChangeNothing) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {kNan, kInf, -kInf, 0.0f}) {  // 0: rejected by the caller
    Fixture fixture(GetParam());
    train::AdamW optimizer(fixture.store, {1.0, 0.9, 0.95, 1e-8, 0.1});
    fixture.store.groups()[0].grad.fill_(0.5);
    optimizer.step(number(0.01), 1.0, number(kNoLimit), flag(false));
    const nn::ParameterGroup before_group = fixture.store.groups()[0];
    const at::Tensor before = fixture.values(), exp_avg = before_group.exp_avg.clone();
    const at::Tensor exp_avg_sq = before_group.exp_avg_sq.clone();
    fixture.store.groups()[0].grad.select(0, 2).fill_(bad);
    const train::OptimizerStep step =
        optimizer.step(number(0.01), 1.0, number(kNoLimit), flag(bad == 0.0f));
    EXPECT_TRUE(step.rejected.item<bool>()) << bad;
    EXPECT_TRUE(at::equal(fixture.values(), before)) << bad;
    EXPECT_TRUE(at::equal(before_group.exp_avg, exp_avg)) << bad;
    EXPECT_TRUE(at::equal(before_group.exp_avg_sq, exp_avg_sq)) << bad;
    EXPECT_EQ(optimizer.num_steps().item<double>(), 1.0) << bad;
    // The next clean step is applied: nothing of the bad one stayed behind.
    fixture.store.groups()[0].grad.fill_(0.5);
    optimizer.step(number(0.01), 1.0, number(kNoLimit), flag(false));
    EXPECT_TRUE(at::isfinite(fixture.values()).all().item<bool>()) << bad;
    EXPECT_FALSE(at::equal(fixture.values(), before)) << bad;
  }
}

TEST_P(AdamW, NoClippingWhenOff) {
  Fixture clipped(GetParam()), free(GetParam());
  for (Fixture* fixture : {&clipped, &free}) {
    fixture->store.groups()[0].grad.fill_(100.0);
    fixture->store.groups()[1].grad.fill_(1e-6);
  }
  train::AdamW(clipped.store, {1.0, 0.9, 0.95, 1e-8, 0.0})
      .step(number(0.01), 1e-3, number(kNoLimit), flag(false));
  train::AdamW(free.store, {1.0, 0.9, 0.95, 1e-8, 0.0})
      .step(number(0.01), 0.0, number(kNoLimit), flag(false));
  // A gradient of 1e-6 moves a weight by lr; scaled down to 4e-12 it is lost in eps.
  EXPECT_NEAR(1.0 - free.store.groups()[1].master[0].item<double>(), 0.01, 2e-4);
  EXPECT_LT(1.0 - clipped.store.groups()[1].master[0].item<double>(), 1e-3);
}

// Lengths that are and are not whole accesses and blocks, against the formula in fp64.
TEST_P(AdamW, AgreesWithTheFormula) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kDecay = 0.1, kMaxNorm = 0.5;
  for (const int64_t size : {1, 5, 2048, 4099}) {
    SCOPED_TRACE(size);
    nn::ParameterStore store;
    store.declare("a", {size}, nn::normal_init(1.0), true);
    store.allocate(GetParam(), at::kBFloat16, 1);
    store.allocate_training_state();
    const nn::ParameterGroup& group = store.groups()[0];
    train::AdamW optimizer(store, {1.0, kBeta1, kBeta2, kEps, kDecay});
    at::Tensor p = group.master.cpu().to(at::kDouble), m = at::zeros_like(p), v = at::zeros_like(p);
    for (int t = 1; t <= 3; ++t) {
      const double lr = 0.01 * t;
      const at::Tensor grad = at::randn({size});
      group.grad.copy_(grad);
      optimizer.step(number(lr), kMaxNorm, number(kNoLimit), flag(false));
      const at::Tensor exact = grad.to(at::kDouble);
      const double norm = exact.norm().item<double>();
      const at::Tensor g = exact / std::max(1.0, (norm + 1e-6) / kMaxNorm);
      m = kBeta1 * m + (1 - kBeta1) * g;
      v = kBeta2 * v + (1 - kBeta2) * g * g;
      p = p * (1 - lr * kDecay);
      p = p -
          lr * (m / (1 - std::pow(kBeta1, t))) / ((v / (1 - std::pow(kBeta2, t))).sqrt() + kEps);
      EXPECT_TRUE(at::allclose(group.master.cpu().to(at::kDouble), p, 1e-6, 1e-7));
      EXPECT_TRUE(at::allclose(group.exp_avg.cpu().to(at::kDouble), m, 1e-5, 1e-9));
      EXPECT_TRUE(at::allclose(group.exp_avg_sq.cpu().to(at::kDouble), v, 1e-5, 1e-12));
      EXPECT_TRUE(at::equal(group.shadow, group.master.to(at::kBFloat16)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, AdamW, testing::Values(at::kCPU, at::kCUDA), [](const auto& row) {
  return c10::DeviceTypeName(row.param, /*lower_case=*/true);
});

}  // namespace
}  // namespace amoeba::test
