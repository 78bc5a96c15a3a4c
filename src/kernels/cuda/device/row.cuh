// Rows of fp32, fp16 or bf16 values in pieces of eight, and sums over a warp.
#pragma once

#include <cstdint>

#include "element.cuh"

namespace amoeba::kernels::cuda::device {

inline constexpr int kPiece = 8;

// Whether rows of `size` values from these on are read and written 16 bytes at a time.
template <typename... Pointers>
bool rows_are_wide(int64_t size, Pointers... pointers) {
  return size % kPiece == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// The first of `left` values that are there; `fill` beyond.
template <typename T>
__device__ inline void load_piece(float (&to)[kPiece], const T* from, int64_t left, bool wide,
                                  float fill = 0) {
  if (!wide) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) to[i] = i < left ? static_cast<float>(from[i]) : fill;
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 half = reinterpret_cast<const float4*>(from)[i];
      to[4 * i] = half.x;
      to[4 * i + 1] = half.y;
      to[4 * i + 2] = half.z;
      to[4 * i + 3] = half.w;
    }
  } else {
    const uint4 chunk = *reinterpret_cast<const uint4*>(from);
    const uint32_t word[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack<T>(word[i]);
      to[2 * i] = pair.x;
      to[2 * i + 1] = pair.y;
    }
  }
}

template <typename T>
__device__ inline void store_piece(T* to, const float (&from)[kPiece], int64_t left, bool wide) {
  if (!wide) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      if (i < left) to[i] = static_cast<T>(from[i]);
    }
  } else if constexpr (sizeof(T) == 4) {
    reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
  } else {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack<T>(from[0], from[1]), pack<T>(from[2], from[3]), pack<T>(from[4], from[5]),
                   pack<T>(from[6], from[7]));
  }
}

// The same in all 32 lanes.
__device__ inline float sum_warp(float value) {
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

}  // namespace amoeba::kernels::cuda::device
