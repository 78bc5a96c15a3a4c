// Tensor maps: how the copy engine finds a box of an expert's matrix in global memory.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "amoeba/kernels.h"
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/matrix.cuh"

namespace amoeba::kernels::cuda {

template <typename T>
inline constexpr DType kDTypeOf = std::is_same_v<T, float>          ? DType::kF32
                                  : std::is_same_v<T, device::bf16> ? DType::kBF16
                                                                    : DType::kF16;

// Of `rows` by `columns` for each expert, in boxes of `box_rows` by 128 bytes with the 128-byte
// swizzle. `columns` and `rows` count gate and up. The dimensions of the map:
//   by pairing of rows     (column, row of eight, gate or up, block, expert); box_rows 8 means gate
//                          or up
//   by pairing of columns  (column within its half, row, half, expert, 0)
//   otherwise              (column, row, expert)
// `matrix` may have one: see has_tensor_map.
CUtensorMap make_tensor_map(const device::Matrix& matrix, DType dtype, int64_t num_experts,
                            int64_t rows, int64_t columns, int box_rows);

// Whether the strides of a matrix fit a map: rising, below 2^40 bytes.
bool has_tensor_map(const device::Matrix& matrix);

}  // namespace amoeba::kernels::cuda
