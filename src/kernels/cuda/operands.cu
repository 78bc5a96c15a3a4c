#include "kernels/cuda/operands.h"

#include <cstdlib>

#include "amoeba/error.h"

namespace amoeba::kernels::cuda {

namespace {

constexpr int64_t kChunkBytes = 16;

int64_t distance(const Matrix& from, const Matrix& to) {
  return static_cast<char*>(to.data) - static_cast<char*>(from.data);
}

bool is_pairs(const Matrix& gate, const Matrix& up) {
  return gate.stride[1] == 2 && distance(gate, up) == bytes_of(gate.dtype);
}

bool same_strides(const Matrix& a, const Matrix& b) {
  return a.stride[0] == b.stride[0] && a.stride[1] == b.stride[1] && a.stride[2] == b.stride[2];
}

bool is_aligned(const void* data, int64_t stride0, int64_t stride1, DType dtype) {
  const int64_t bytes = bytes_of(dtype);
  return reinterpret_cast<uintptr_t>(data) % kChunkBytes == 0 &&
         stride0 * bytes % kChunkBytes == 0 && stride1 * bytes % kChunkBytes == 0 &&
         std::abs(stride1) * bytes <= device::kMaxRowStride;
}

std::string refuse_strides(const char* name, const Matrix& matrix, int64_t row_stride,
                           int64_t column_stride) {
  if (column_stride != 1) {
    return cat(name, " has neither rows nor columns of stride 1 (", matrix.stride[1], " and ",
               matrix.stride[2], ")");
  }
  if (!is_aligned(matrix.data, matrix.stride[0], row_stride, matrix.dtype)) {
    return cat(name,
               " is not aligned to 16 bytes in its start and strides, or its rows are more than 64 "
               "MiB apart");
  }
  return "";
}

}  // namespace

bool is_up_first(const Matrix& gate, const Matrix& up) { return distance(gate, up) < 0; }

Stored stored_gate_up(const Matrix& first, const Matrix& second) {
  const bool has_both = first.data != nullptr && second.data != nullptr;
  const Matrix& given = first.data != nullptr ? first : second;
  const int64_t bytes = bytes_of(given.dtype);
  Stored stored;
  stored.matrix.base = static_cast<char*>(given.data);
  stored.matrix.expert_stride = given.stride[0] * bytes;
  stored.matrix.up_offset = has_both ? distance(first, second) : 0;
  stored.pairs = has_both && is_pairs(first, second);
  stored.transposed = given.stride[2] != 1;
  stored.matrix.row_stride = given.stride[stored.transposed ? 2 : 1] * bytes;
  stored.matrix.pairing = stored.pairs        ? device::Pairing::kNone
                          : stored.transposed ? device::Pairing::kColumnBlocks
                                              : device::Pairing::kRowBlocks;
  return stored;
}

Stored stored_down(const Matrix& down) {
  const int64_t bytes = bytes_of(down.dtype);
  Stored stored;
  stored.transposed = down.stride[2] != 1;
  stored.matrix.base = static_cast<char*>(down.data);
  stored.matrix.expert_stride = down.stride[0] * bytes;
  stored.matrix.row_stride = down.stride[stored.transposed ? 2 : 1] * bytes;
  return stored;
}

device::Matrix stored_rows(const View& view) {
  device::Matrix matrix;
  matrix.base = static_cast<char*>(view.data);
  matrix.row_stride = view.stride[0] * bytes_of(view.dtype);
  return matrix;
}

device::Vector stored_bias(const Matrix& bias, const Matrix& up) {
  device::Vector vector;
  if (bias.data == nullptr) return vector;
  const int64_t bytes = bytes_of(bias.dtype);
  vector.base = static_cast<char*>(bias.data);
  vector.expert_stride = bias.stride[0] * bytes;
  vector.stride = bias.stride[1] * bytes;
  vector.up_offset = up.data == nullptr ? 0 : distance(bias, up);
  vector.dtype = static_cast<int32_t>(bias.dtype);
  return vector;
}

std::string refuse_gate_up(const char* name, const Matrix& gate, const Matrix& up) {
  if (gate.data == nullptr || up.data == nullptr) {
    return refuse_matrix(name, gate.data == nullptr ? up : gate);
  }
  if (gate.dtype != up.dtype || !same_strides(gate, up)) {
    return cat(name, " has different strides or dtypes for gate and up");
  }
  if (is_pairs(gate, up)) return refuse_strides(name, gate, gate.stride[2], 1);
  const std::string reason = refuse_matrix(name, gate);
  return reason.empty() ? refuse_matrix(name, up) : reason;
}

std::string refuse_matrix(const char* name, const Matrix& matrix) {
  if (matrix.stride[2] == 1) return refuse_strides(name, matrix, matrix.stride[1], 1);
  return refuse_strides(name, matrix, matrix.stride[2], matrix.stride[1]);
}

std::string refuse_rows(const char* name, const View& view) {
  if (view.stride[1] != 1 || !is_aligned(view.data, 0, view.stride[0], view.dtype)) {
    return cat(name, " has strides ", view.stride[0], " and ", view.stride[1],
               ", want a column stride of 1 and rows aligned to 16 bytes, at most 64 MiB apart");
  }
  return "";
}

std::string refuse_bias(const char* name, const Matrix& gate, const Matrix& up) {
  if (gate.data == nullptr || up.data == nullptr) return "";
  if (gate.dtype == up.dtype && same_strides(gate, up)) return "";
  return cat(name, " has different strides or dtypes for gate and up");
}

}  // namespace amoeba::kernels::cuda
