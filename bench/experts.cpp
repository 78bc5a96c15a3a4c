// Forward and forward + backward of every expert backend on the demo's layer:
// R 8192, D 128, H 128, E 8; fp32 and bf16; equal and skewed counts.
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "amoeba/error.h"
#include "amoeba/experts.h"

namespace amoeba::nn {
namespace {

constexpr int64_t kModelDim = 128, kHiddenDim = 128;

struct Counts {
  const char* name;
  std::vector<int64_t> values;
};
const Counts kCounts[] = {
    {"equal", {1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024}},
    {"skewed", {2100, 300, 1500, 700, 1100, 900, 1392, 200}},
};

void run(benchmark::State& state, const ExpertBackend& backend, at::ScalarType dtype,
         const Counts& counts, bool with_backward) {
  const auto num_experts = static_cast<int64_t>(counts.values.size());
  const auto normal = [&](at::IntArrayRef shape, double scale) {
    return at::randn(shape).mul(scale).to(dtype).requires_grad_(with_backward);
  };
  const at::Tensor x = normal({8192, kModelDim}, 1), dy = normal({8192, kModelDim}, 1).detach();
  const ExpertWeights weights = {normal({num_experts, kHiddenDim, kModelDim}, 0.02),
                                 normal({num_experts, kModelDim, kHiddenDim}, 0.02),
                                 normal({num_experts, kHiddenDim, kModelDim}, 0.02)};
  const at::Tensor host_counts = at::tensor(at::ArrayRef<int64_t>(counts.values), at::kLong);
  for (auto _ : state) {
    ExpertStats stats;
    const at::Tensor y = run_expert_rows(backend, x, host_counts, weights, {}, stats);
    if (!with_backward) continue;
    y.backward(dy);
    for (const at::Tensor& leaf : {x, weights.w1, weights.w2, weights.w3}) {
      leaf.mutable_grad() = at::Tensor();
    }
  }
}

void register_all() {
  for (const ExpertBackend& backend : expert_backends()) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const Counts& counts : kCounts) {
        for (const bool with_backward : {false, true}) {
          benchmark::RegisterBenchmark(cat(backend.name, "/", dtype, "/", counts.name,
                                           with_backward ? "/forward_backward" : "/forward")
                                           .c_str(),
                                       [&, dtype, with_backward](benchmark::State& state) {
                                         run(state, backend, dtype, counts, with_backward);
                                       })
              ->Unit(benchmark::kMillisecond)
              ->UseRealTime();
        }
      }
    }
  }
}

}  // namespace
}  // namespace amoeba::nn

int main(int argc, char** argv) {
  amoeba::nn::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
