#include "train/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace amoeba::test {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

struct Fixture {
  Fixture() {
    store.declare("a", {6}, nn::ones_init(), true);
    store.declare("b", {3}, nn::ones_init(), false);
    store.allocate(at::kCPU, at::kFloat, 1);
    store.allocate_training_state();
    store.groups()[0].master.copy_(at::tensor({1.f, -2.f, 3.f, 0.5f, -0.25f, 4.f}));
  }
  at::Tensor values() const {
    return at::cat({store.groups()[0].master, store.groups()[1].master});
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

TEST(AdamW, FollowsTorchsTrace) {
  Fixture fixture;
  train::AdamW optimizer(fixture.store, {1.0, 0.9, 0.95, 1e-8, 0.1});
  for (int t = 1; t <= 5; ++t) {
    for (int i = 0; i < 6; ++i) {
      fixture.store.groups()[0].grad.select(0, i).fill_(((i * 7 + t * 3) % 11 - 5) / 2.0);
    }
    for (int i = 0; i < 3; ++i) {
      fixture.store.groups()[1].grad.select(0, i).fill_(((i * 5 + t * 2) % 7 - 3) / 4.0);
    }
    const train::OptimizerStep step =
        optimizer.step(0.01 * t, 2.0, kNoLimit, at::zeros({}, at::kBool));
    const TracePoint& want = kTrace[static_cast<size_t>(t - 1)];
    EXPECT_NEAR(step.grad_norm.item<double>(), want.norm, 1e-6);
    EXPECT_FALSE(step.rejected.item<bool>());
    EXPECT_TRUE(at::allclose(fixture.values(), at::tensor(want.values), 1e-6, 1e-7)) << t;
    EXPECT_EQ(optimizer.num_steps().item<double>(), t);
  }
}

TEST(AdamW, RejectedStepsChangeNothing) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {kNan, kInf, -kInf, 0.0f}) {  // 0: rejected by the caller
    Fixture fixture;
    train::AdamW optimizer(fixture.store, {1.0, 0.9, 0.95, 1e-8, 0.1});
    fixture.store.groups()[0].grad.fill_(0.5);
    optimizer.step(0.01, 1.0, kNoLimit, at::zeros({}, at::kBool));
    const nn::ParameterGroup before_group = fixture.store.groups()[0];
    const at::Tensor before = fixture.values(), exp_avg = before_group.exp_avg.clone();
    const at::Tensor exp_avg_sq = before_group.exp_avg_sq.clone();
    fixture.store.groups()[0].grad.select(0, 2).fill_(bad);
    const train::OptimizerStep step =
        optimizer.step(0.01, 1.0, kNoLimit, at::full({}, bad == 0.0f, at::kBool));
    EXPECT_TRUE(step.rejected.item<bool>()) << bad;
    EXPECT_TRUE(at::equal(fixture.values(), before)) << bad;
    EXPECT_TRUE(at::equal(before_group.exp_avg, exp_avg)) << bad;
    EXPECT_TRUE(at::equal(before_group.exp_avg_sq, exp_avg_sq)) << bad;
    EXPECT_EQ(optimizer.num_steps().item<double>(), 1.0) << bad;
    // The next clean step is applied: nothing of the bad one stayed behind.
    fixture.store.groups()[0].grad.fill_(0.5);
    optimizer.step(0.01, 1.0, kNoLimit, at::zeros({}, at::kBool));
    EXPECT_TRUE(at::isfinite(fixture.values()).all().item<bool>()) << bad;
    EXPECT_FALSE(at::equal(fixture.values(), before)) << bad;
  }
}

TEST(AdamW, NoClippingWhenOff) {
  Fixture clipped, free;
  for (Fixture* fixture : {&clipped, &free}) {
    fixture->store.groups()[0].grad.fill_(100.0);
    fixture->store.groups()[1].grad.fill_(1e-6);
  }
  train::AdamW(clipped.store, {1.0, 0.9, 0.95, 1e-8, 0.0})
      .step(0.01, 1e-3, kNoLimit, at::zeros({}, at::kBool));
  train::AdamW(free.store, {1.0, 0.9, 0.95, 1e-8, 0.0})
      .step(0.01, 0.0, kNoLimit, at::zeros({}, at::kBool));
  // A gradient of 1e-6 moves a weight by lr; scaled down to 4e-12 it is lost in eps.
  EXPECT_NEAR(1.0 - free.store.groups()[1].master[0].item<double>(), 0.01, 2e-4);
  EXPECT_LT(1.0 - clipped.store.groups()[1].master[0].item<double>(), 1e-3);
}

}  // namespace
}  // namespace amoeba::test
