// The prefix sum over a block of threads.
#pragma once

#include <cstdint>

namespace amoeba::kernels::cuda::device {

// Inclusive sum of one value a thread over kThreads threads; `shared` holds 32 values.
template <int kThreads>
__device__ int32_t scan_block(int32_t value, int32_t* shared) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t below = __shfl_up_sync(0xffffffffu, value, distance);
    if (lane >= distance) value += below;
  }
  __syncthreads();  // the values of an earlier call have been read
  if (lane == 31) shared[warp] = value;
  __syncthreads();
  for (int w = 0; w < warp; ++w) value += shared[w];
  return value;
}

}  // namespace amoeba::kernels::cuda::device
