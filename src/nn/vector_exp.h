// e^x for loops that the compiler vectorises. Free of LibTorch and private to each file that
// includes it: some of them are compiled for instructions that others must not use.
#pragma once

#include <cstdint>
#include <cstring>

namespace amoeba::nn {

// To about 1.5 ulp, without branches or calls: range reduction by ln 2 in two parts, then the
// degree-6 polynomial of Cephes expf. Saturates outside [-87, 88]; NaN stays NaN.
static inline float vector_exp(float x) {
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
