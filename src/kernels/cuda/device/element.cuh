// The two 16-bit element types, packed in pairs, and the transpose of a quad of lanes that turns
// matrix fragments into 16-byte chunks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace amoeba::kernels::cuda::device {

using bf16 = __nv_bfloat16;
using fp16 = __half;

template <typename T>
__device__ inline uint32_t pack(float low, float high);

template <>
__device__ inline uint32_t pack<bf16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <>
__device__ inline uint32_t pack<fp16>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <typename T>
__device__ inline float2 unpack(uint32_t pair);

template <>
__device__ inline float2 unpack<bf16>(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

template <>
__device__ inline float2 unpack<fp16>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

// Lane q of every four gets word q of lanes 0..3: its own inverse.
__device__ inline void transpose_quad(uint32_t (&word)[4]) {
  const int lane = threadIdx.x & 3;
  const auto exchange = [lane](uint32_t& first, uint32_t& second, int distance) {
    const bool upper = (lane & distance) != 0;
    const uint32_t sent = upper ? first : second;
    const uint32_t got = __shfl_xor_sync(0xffffffffu, sent, distance);
    (upper ? first : second) = got;
  };
  exchange(word[0], word[1], 1);
  exchange(word[2], word[3], 1);
  exchange(word[0], word[2], 2);
  exchange(word[1], word[3], 2);
}

// The sum over a quad, the same in its four lanes.
__device__ inline float sum_quad(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

__device__ inline float max_quad(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

}  // namespace amoeba::kernels::cuda::device
