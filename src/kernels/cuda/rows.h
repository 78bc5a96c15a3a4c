// The kernels around the products: what they need to know of the routing, the weighted combination
// of rows, sums over the rows of an expert, score gradients.
//
// Legend: T tokens, K choices, R = T*K rows, D model width, E experts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/device/matrix.cuh"

namespace amoeba::kernels::cuda {

// A [T, K] view of scores; data == nullptr: 1.
struct Scores {
  char* data = nullptr;
  int64_t stride[2] = {0, 0};  // bytes
  int32_t dtype = 0;
};

// What the products read of the routing, made by `prepare` from the caller's. Offsets that do not
// rise from 0 to at most R set kErrorCounts and become zeros: no row is routed.
struct Grouping {
  int32_t* offsets = nullptr;    // [E+1]
  int2* tiles = nullptr;         // [max_tiles]: expert and first row of each block of rows
  int32_t* num_tiles = nullptr;  // [1]
  uint32_t* drawn = nullptr;     // [2], zeros: one for each product by depth
  int32_t* row_token = nullptr;  // [R], -1: no token; nullptr: rows are not gathered
  float* row_weight = nullptr;   // [R]; nullptr: 1
  int64_t max_tiles = 0;
};

struct PrepareArguments {
  const int32_t* offsets = nullptr;
  const int32_t* row_slot = nullptr;
  Scores scores;
  int64_t num_rows = 0;
  int64_t num_slots_per_token = 1;
  int64_t num_experts = 0;
  int32_t* error = nullptr;
};
void prepare(const PrepareArguments& arguments, const Grouping& grouping, cudaStream_t stream);

// out[slot_row[t, k]] [R, D] = row t of rows for every k; rows past the last routed one are left.
struct SpreadArguments {
  const char* rows = nullptr;
  int64_t row_stride = 0;  // bytes
  char* out = nullptr;
  int64_t row_bytes = 0;  // of D elements
  int64_t num_tokens = 0;
  int64_t num_choices = 0;
  const int32_t* slot_row = nullptr;
  const int32_t* num_sorted = nullptr;  // [1]
};
void spread(const SpreadArguments& arguments, cudaStream_t stream);

// out[t] = sum over k, in order, of score[t, k] * rows[slot_row[t, k]]; slot_row -1: nothing.
template <typename T>
struct CombineArguments {
  const T* rows = nullptr;  // [R, D], contiguous
  const int32_t* slot_row = nullptr;
  Scores scores;
  T* out = nullptr;
  int64_t out_stride = 0;  // elements
  int64_t num_tokens = 0;
  int64_t num_choices = 0;
  const int32_t* num_sorted = nullptr;  // [1]: rows from here on hold nothing
  int64_t dim = 0;
};
template <typename T>
void combine(const CombineArguments<T>& arguments, cudaStream_t stream);

// Zeros rows [offsets[E], R) of out [R, D].
template <typename T>
void zero_tail(const Grouping& grouping, int64_t num_experts, int64_t num_rows, T* out,
               int64_t out_stride, int64_t dim, cudaStream_t stream);

// out[e, c] (+)= sum over the rows r of expert e of weight[r] * rows[r, c].
struct ColumnSums {
  device::Matrix rows;
  const float* row_weight = nullptr;
  int64_t num_columns = 0;
  device::Vector out;
  bool blocks = false;  // columns are in the order of blocks, out is by gate and up
  bool pairs = false;   // likewise
  bool skip_gate = false;
  bool skip_up = false;
  bool accumulate = false;
};
template <typename T>
void sum_columns(const ColumnSums& sums, const Grouping& grouping, int64_t num_experts,
                 cudaStream_t stream);

// dscores[t, k] = sum of the parts of its row + <dy[t], bias[e]>; zero for a skipped slot.
struct ScoreGradient {
  const float* parts = nullptr;  // [R, num_parts]
  int64_t num_parts = 0;
  const int32_t* slot_row = nullptr;
  int64_t num_tokens = 0;
  int64_t num_choices = 0;
  Scores out;
  device::Matrix dy;
  device::Vector bias;  // base == nullptr: none
  int64_t dim = 0;
};
template <typename T>
void score_gradient(const ScoreGradient& gradient, const Grouping& grouping, int64_t num_experts,
                    cudaStream_t stream);

}  // namespace amoeba::kernels::cuda
