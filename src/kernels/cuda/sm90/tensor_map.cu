#include "kernels/cuda/sm90/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"
#include "kernels/problem.h"

namespace amoeba::kernels::cuda {

namespace {

// From the driver that is there: the library links none.
PFN_cuTensorMapEncodeTiled_v12000 encode_function() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &result),
             "sm90: cuTensorMapEncodeTiled");
  AMOEBA_CHECK(result == cudaDriverEntryPointSuccess, "sm90: the driver has no tensor maps");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType map_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  }
}

}  // namespace

CUtensorMap make_tensor_map(const device::Matrix& matrix, DType dtype, int64_t num_experts,
                            int64_t rows, int64_t columns, int box_rows) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encode_function();
  const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const auto kind = static_cast<int>(matrix.pairing);  // none, rows, columns
  const cuuint64_t sizes[3][5] = {{size(columns), size(rows), size(num_experts), 1, 1},
                                  {size(columns), 8, 2, size(rows / 16), size(num_experts)},
                                  {size(columns / 2), size(rows), 2, size(num_experts), 1}};
  // A dimension of one entry may have any stride in a view, but not in a map.
  const int64_t row_stride = rows > 1 ? matrix.row_stride : columns * bytes_of(dtype);
  const int64_t expert_stride = num_experts > 1 ? matrix.expert_stride : row_stride;
  const cuuint64_t strides[3][4] = {
      {size(row_stride), size(expert_stride), 0, 0},
      {size(row_stride), size(matrix.up_offset), size(8 * row_stride), size(expert_stride)},
      {size(row_stride), size(matrix.up_offset), size(expert_stride), size(expert_stride)}};
  const auto box_columns = static_cast<cuuint32_t>(128 / bytes_of(dtype));
  const auto all_rows = static_cast<cuuint32_t>(box_rows);
  const cuuint32_t boxes[3][5] = {
      {box_columns, all_rows, 1, 1, 1},
      {box_columns, 8, all_rows < 16 ? 1u : 2u, all_rows < 16 ? 1u : all_rows / 16, 1},
      {box_columns, all_rows, 1, 1, 1}};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, map_type(dtype), kind == 0 ? 3 : 5, matrix.base, sizes[kind], strides[kind],
             boxes[kind], steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  AMOEBA_CHECK_KIND(kInternal, status == CUDA_SUCCESS, "sm90: cuTensorMapEncodeTiled gives ",
                    static_cast<int>(status));
  return map;
}

bool has_tensor_map(const device::Matrix& matrix) {
  constexpr int64_t kMaxStride = int64_t{1} << 40;
  const bool paired = matrix.pairing != device::Pairing::kNone;
  return matrix.row_stride > 0 && matrix.expert_stride > 0 && matrix.expert_stride < kMaxStride &&
         (!paired || (matrix.up_offset > 0 && matrix.up_offset < kMaxStride));
}

}  // namespace amoeba::kernels::cuda
