// What the attention kernels of the CPU are given: plain data, since each instruction set is
// compiled apart and must share no inline function with other code, lest the linker pick its copy
// for a CPU without the instructions.
//
// Legend: T tokens, hd width of a query or key head, kv heads dividing heads.
#pragma once

#include <cstdint>

namespace amoeba::nn::cpu_attention {

// [T, heads, width] fp32 with the values of a head side by side.
struct Heads {
  float* data;
  int64_t token_stride, head_stride;
};

struct Pass {
  int64_t num_tokens, heads_per_kv;
  int64_t key_dim, value_dim;
  float scale;
  Heads q, k, v, y;
  float* lse;            // [heads, T], log of the sum of exp of a query's scores
  Heads dy, dq, dk, dv;  // of backward
};

// The keys and values of one document and kv head, and all queries that attend to them.
struct Task {
  int64_t begin, length;  // tokens
  int64_t kv_head;
};

struct Kernels {
  int64_t (*scratch_floats)(const Pass& pass, int64_t length);
  void (*forward)(const Pass& pass, const Task& task, float* scratch);
  void (*backward)(const Pass& pass, const Task& task, float* scratch);
};

extern const Kernels kAvx2, kAvx512;

}  // namespace amoeba::nn::cpu_attention
