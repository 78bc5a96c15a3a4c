// Checks around launches and the sizes of grids.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "amoeba/error.h"

namespace amoeba::kernels::cuda {

inline void check_cuda(cudaError_t status, const char* operation) {
  AMOEBA_CHECK_KIND(kInternal, status == cudaSuccess, operation, ": ", cudaGetErrorString(status));
}

// After every launch: a launch reports what the host could know of it.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

// Tiles of a product are counted in 32 bits.
inline void check_tiles(int64_t tiles) {
  AMOEBA_CHECK(tiles <= INT32_MAX, "experts: a product has ", tiles, " tiles, want less than 2^31");
}

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Blocks of a grid; the second and third dimension of a grid end at 65535.
inline unsigned grid_blocks(int64_t count, int64_t size) {
  return static_cast<unsigned>(ceil_div(count, size));
}

}  // namespace amoeba::kernels::cuda
