// e^x for loops that the compiler vectorises. Free of LibTorch and private to each file that
// includes it: some of them are compiled for instructions that others must not use.
#pragma once

#include <cstdint>
#include <cstring>

namespace amoeba::nn {

// To about 1.5 ulp, without branches or calls: range reduction by ln 2 in two parts, then the
// degree-6 polynomial of Cephes expf. Saturates outside [-87, 88]; NaN stays NaN. V: float or a
// vector of them; U: as many uint32_t.
template <typename V, typename U>
static inline V exponential(V x) {
  const V low = V{} - 87.0f, high = V{} + 88.0f;
  const V above = x < low ? low : x;
  const V clamped = above > high ? high : above;
  const V shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  const V n = shifted - 12582912.0f;
  V r = clamped - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  U bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127u << 23);  // 2^n: n is the low bits of shifted
  V scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
static inline float vector_exp(float x) { return exponential<float, uint32_t>(x); }

}  // namespace amoeba::nn
