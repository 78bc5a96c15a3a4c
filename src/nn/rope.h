// Rotary position embedding (Su et al., 2021) in the interleaved form: neighbouring pairs rotate.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace amoeba::nn {

// cos and sin of position * theta^(-2 i / head_dim), each [max_positions, head_dim / 2] fp32.
struct RopeTable {
  at::Tensor cos;
  at::Tensor sin;
};
RopeTable make_rope_table(int64_t max_positions, int64_t head_dim, double theta, at::Device device);

// x [T, heads, head_dim], positions [T] int64 within the table -> rotated x, same shape and dtype.
at::Tensor rope(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions);

}  // namespace amoeba::nn
