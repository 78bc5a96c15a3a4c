#include "nn/parallel.h"

#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "amoeba/error.h"

namespace amoeba::nn {
namespace {

TEST(ParallelFor, VisitsEveryIndexOnce) {
  for (const int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
    parallel_for(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) visits[static_cast<size_t>(i)]++;
    });
    EXPECT_TRUE(std::all_of(visits.begin(), visits.end(), [](const auto& n) { return n == 1; }));
  }
}

TEST(ParallelFor, RethrowsTheErrorOfABody) {
  EXPECT_THROW(parallel_for(4, [](int64_t, int64_t) { fail(ErrorKind::kData, "planted"); }), Error);
}

TEST(ParallelFor, BodiesWriteIntoTensorsBelowAutograd) {
  const at::Tensor weight = at::ones({3, 3}).requires_grad_();
  at::Tensor out = at::ones({4, 3, 3});
  parallel_for(4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      at::Tensor slice = out.select(0, i);
      at::mm_out(slice, weight, weight);
    }
  });
  EXPECT_TRUE(out.eq(3).all().item<bool>());
  EXPECT_FALSE(out.requires_grad());
}

}  // namespace
}  // namespace amoeba::nn
