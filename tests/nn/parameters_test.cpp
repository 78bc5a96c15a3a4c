#include "nn/parameters.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "amoeba/error.h"

namespace amoeba::test {
namespace {

struct Store {
  explicit Store(at::ScalarType dtype, uint64_t seed = 1, bool swapped = false) {
    if (swapped) b = store.declare("b", {3, 4}, nn::normal_init(0.5), true);
    a = store.declare("a", {2, 4}, nn::truncated_normal_init(0.02, 0.03), true);
    if (!swapped) b = store.declare("b", {3, 4}, nn::normal_init(0.5), true);
    norm = store.declare("norm", {4}, nn::ones_init(), false, /*keep_fp32=*/true);
    if (!swapped) joined = store.join({a, b});
    store.allocate(at::kCPU, dtype, seed);
    store.allocate_training_state();
  }
  nn::ParameterStore store;
  nn::Parameter *a, *b, *norm;
  const nn::Parameter* joined = nullptr;
};

TEST(ParameterStore, EveryTensorIsAViewOfItsGroup) {
  Store made(at::kFloat);
  EXPECT_EQ(made.store.numel(), 8 + 12 + 4);
  EXPECT_EQ(made.store.groups()[0].master.numel(), 20);
  EXPECT_EQ(made.store.groups()[1].master.numel(), 4);
  made.store.groups()[0].master.select(0, 8).fill_(42.0);
  EXPECT_EQ(made.b->master[0][0].item<float>(), 42.0f);
  EXPECT_EQ(made.b->compute[0][0].item<float>(), 42.0f);
  EXPECT_TRUE(at::equal(made.norm->master.detach(), at::ones({4})));
}

TEST(ParameterStore, GradientsOfUsesAddUpInTheFlatBuffer) {
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Store made(dtype);
    const auto backward = [&](const nn::Parameter& parameter, double value) {
      const at::Tensor used = parameter.use();
      torch::autograd::backward({used}, {at::full_like(used, value)});
    };
    backward(*made.a, 1.0);
    backward(*made.joined, 2.0);
    backward(*made.norm, 4.0);
    const at::Tensor grad = made.store.groups()[0].grad;
    EXPECT_TRUE(at::equal(grad.narrow(0, 0, 8), at::full({8}, 3.0f)));
    EXPECT_TRUE(at::equal(grad.narrow(0, 8, 12), at::full({12}, 2.0f)));
    EXPECT_TRUE(at::equal(made.store.groups()[1].grad, at::full({4}, 4.0f)));
    made.store.zero_grad();
    EXPECT_EQ(made.a->grad.abs().max().item<float>(), 0.0f);
  }
}

TEST(ParameterStore, JoinedParametersAreTheirRowsStacked) {
  Store made(at::kFloat);
  EXPECT_TRUE(at::equal(made.joined->compute, at::cat({made.a->compute, made.b->compute})));
}

TEST(ParameterStore, ShadowFollowsTheMastersOnlyWhenRefreshed) {
  Store made(at::kBFloat16);
  EXPECT_EQ(made.a->compute.scalar_type(), at::kBFloat16);
  EXPECT_EQ(made.norm->compute.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(made.a->compute, made.a->master.detach().to(at::kBFloat16)));
  made.store.groups()[0].master.fill_(3.0);
  EXPECT_FALSE(at::equal(made.a->compute, made.a->master.detach().to(at::kBFloat16)));
  made.store.refresh_compute();
  EXPECT_TRUE(at::equal(made.a->compute, made.a->master.detach().to(at::kBFloat16)));
}

TEST(ParameterStore, InitialValuesDependOnSeedAndNameAlone) {
  Store one(at::kFloat), same(at::kFloat), other_order(at::kFloat, 1, /*swapped=*/true);
  Store other_seed(at::kFloat, 2);
  EXPECT_TRUE(at::equal(one.b->compute, same.b->compute));
  EXPECT_TRUE(at::equal(one.b->compute, other_order.b->compute));
  EXPECT_FALSE(at::equal(one.b->compute, other_seed.b->compute));
  EXPECT_LE(one.a->compute.abs().max().item<float>(), 0.03f);
  EXPECT_GT(one.a->compute.abs().max().item<float>(), 0.0f);
}

TEST(ParameterStore, MetaHasShapesAndNoMemory) {
  nn::ParameterStore store;
  store.declare("large", {1 << 20, 1 << 20}, nn::normal_init(1.0), true);
  store.allocate(at::kMeta, at::kFloat, 1);
  EXPECT_EQ(store.numel(), int64_t{1} << 40);
}

}  // namespace
}  // namespace amoeba::test
