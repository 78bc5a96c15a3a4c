// Grouped-query attention from the joined product of queries, keys and values: norm, rotation and
// attention are one node, so that heads are never copied apart and no gradient is put together.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "nn/cpu_attention/attention.h"
#include "nn/parameters.h"
#include "nn/rope.h"

namespace amoeba::nn::cpu_attention {

struct GroupedHeads {
  int64_t heads, kv_heads, head_dim;
  const Parameter *q_norm, *k_norm;  // [hd], of every head before the rotation; nullptr: none
  double norm_eps, scale;
};

// The best kernels if they take the product, else nullptr: contiguous, fp32, norms of single heads.
const Kernels* kernels_for(const at::Tensor& product, const GroupedHeads& heads);

// product [T, (heads + 2 kv heads) * hd]: queries, keys, values -> [T, heads * hd]. The gradients
// of the norms' weights are summed in a fixed order and added to theirs.
at::Tensor attend_grouped(const Kernels& kernels, const at::Tensor& product,
                          const GroupedHeads& heads, const RopeTable& table,
                          const at::Tensor& positions,
                          const std::vector<int64_t>& document_lengths);

}  // namespace amoeba::nn::cpu_attention
