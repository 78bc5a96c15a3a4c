// Helpers of the CPU loops in nn: plain C++ that the compiler vectorises, once per instruction set.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// The loop is compiled for each of these and the best is picked when the program loads. Results can
// differ in the last bit between CPUs, never between runs or thread counts on one CPU.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AMOEBA_CPU_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define AMOEBA_CPU_CLONES
#endif

namespace amoeba::nn {

// Whether the CPU loops take this tensor; everything else goes through LibTorch's operators.
inline bool has_cpu_loop(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous();
}

// Narrower floats on the CPU widened for these loops; everything else as it is.
inline at::Tensor widened(const at::Tensor& x) {
  const bool is_narrow = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf;
  return x.is_cpu() && is_narrow ? x.to(at::kFloat) : x;
}

inline constexpr int64_t kLanes = 16;  // independent partial sums, so that sums vectorise

// Sum of a[d] * b[d] in a fixed order.
float dot(const float* a, const float* b, int64_t size);

}  // namespace amoeba::nn
