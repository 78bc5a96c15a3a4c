// Causal attention by the kernels of this folder, as a differentiable function.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "nn/cpu_attention/pass.h"

namespace amoeba::nn::cpu_attention {

// Those that this CPU can run, best first.
const std::vector<const Kernels*>& supported_kernels();

// The best kernels if they take these tensors, else nullptr: fp32, a head's values side by side.
const Kernels* kernels_for(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

// softmax(scale q k^T) v, causal within each document: q [T, heads, hd], k [T, kv heads, hd],
// v [T, kv heads, >= value_dim] of any strides -> [T, heads * value_dim]. The documents follow one
// another and cover all T tokens. Equal bits whatever the number of threads. Memory beyond inputs
// and outputs grows with the longest document, not with its square.
at::Tensor attend(const Kernels& kernels, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, int64_t value_dim, double scale,
                  const std::vector<int64_t>& document_lengths);

// Runs one of the kernels' passes over every (document, kv head), each on one thread.
void run_documents(void (*kernel)(const Pass&, const Task&, float*), const Kernels& kernels,
                   const Pass& pass, int64_t kv_heads,
                   const std::vector<int64_t>& document_lengths);

}  // namespace amoeba::nn::cpu_attention
