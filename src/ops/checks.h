// From tensors to views: the checks that every operator shares, on any device.
//
// A check throws amoeba::Error (a std::runtime_error, which crosses LibTorch unchanged) with one
// sentence: "experts_forward: down is float32 [2, 3] on cpu, want bfloat16 [2, 4] on cpu".
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "amoeba/kernels.h"

namespace amoeba::ops {

using torch::stable::Tensor;

constexpr int64_t kAny = -1;  // a size that a check leaves open

// What a check wants; a printed shape shows kAny as "*".
struct Want {
  std::vector<kernels::DType> dtypes;
  std::vector<int64_t> shape;
};

// dtype, shape and device of a tensor, the device being that of `like`.
void check_tensor(const char* operation, const std::string& name, const Tensor& tensor,
                  const Want& want, const Tensor& like);

// A buffer of exactly `count` bytes in a row.
void check_bytes(const char* operation, const std::string& name, const Tensor& tensor,
                 int64_t count, const Tensor& like);

// For tensors that kernels read as plain arrays.
void check_contiguous(const char* operation, const std::string& name, const Tensor& tensor);

// For tensors that kernels write: no element may be written twice.
void check_no_overlap(const char* operation, const std::string& name, const Tensor& tensor);

// The kernels' word for the tensor's dtype; throws for a dtype they have none for.
kernels::DType dtype_of(const char* operation, const std::string& name, const Tensor& tensor);

int64_t bytes_of(kernels::DType dtype);

// A checked tensor of up to three dimensions.
kernels::View view_of(const Tensor& tensor, kernels::DType dtype);

// Fresh memory on the device of `like`.
Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, kernels::DType dtype);
Tensor new_bytes(const Tensor& like, int64_t count);
std::vector<int64_t> shape_of(const Tensor& tensor);

}  // namespace amoeba::ops
