// Helpers of the CPU loops in nn: plain C++ that the compiler vectorises, once per instruction set.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>

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

inline constexpr int64_t kLanes = 16;  // independent partial sums, so that sums vectorise

// Sum of a[d] * b[d] in a fixed order.
float dot(const float* a, const float* b, int64_t size);

// e^x to about 1.5 ulp, without branches or calls: range reduction by ln 2 in two parts, then the
// degree-6 polynomial of Cephes expf. Saturates outside [-87, 88]; NaN stays NaN.
inline float vector_exp(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  const float n = shifted - 12582912.0f;
  float r = clamped - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

}  // namespace amoeba::nn
