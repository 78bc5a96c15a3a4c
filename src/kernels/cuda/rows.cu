#include "kernels/cuda/rows.h"

#include <algorithm>

#include "base/error_word.h"
#include "kernels/cuda/device/row.cuh"
#include "kernels/cuda/device/scalar.cuh"
#include "kernels/cuda/device/scan.cuh"
#include "kernels/cuda/launch.h"

namespace amoeba::kernels::cuda {

using device::bf16;
using device::fp16;

namespace {

constexpr int kPrepareThreads = 1024;
constexpr int kWarpThreads = 128;  // kernels of one warp a token or slot

// Block 0 makes offsets and tiles, the others the rows' tokens and weights.
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(PrepareArguments p, Grouping grouping) {
  const int thread = threadIdx.x;
  if (blockIdx.x > 0) {
    const int64_t row = (blockIdx.x - 1) * static_cast<int64_t>(kPrepareThreads) + thread;
    if (row >= p.num_rows) return;
    const int64_t slot = p.row_slot[row];
    const bool valid = slot >= 0 && slot < p.num_rows;
    const int64_t token = valid ? slot / p.num_slots_per_token : -1;
    grouping.row_token[row] = static_cast<int32_t>(token);
    if (grouping.row_weight == nullptr) return;
    const int64_t choice = slot - token * p.num_slots_per_token;
    grouping.row_weight[row] =
        valid ? device::load_scalar(
                    p.scores.data + token * p.scores.stride[0] + choice * p.scores.stride[1],
                    p.scores.dtype)
              : 0.0f;
    return;
  }

  bool bad = false;
  for (int64_t expert = thread; expert < p.num_experts; expert += kPrepareThreads) {
    const int32_t begin = p.offsets[expert];
    const int32_t end = p.offsets[expert + 1];
    bad = bad || begin < 0 || end < begin || end > p.num_rows || (expert == 0 && begin != 0);
  }
  bad = __syncthreads_or(bad) != 0;
  __shared__ int32_t shared[32];
  __shared__ int32_t num_tiles;
  if (thread == 0) num_tiles = grouping.offsets[0] = 0;
  if (thread < 2) grouping.drawn[thread] = 0;
  for (int64_t first = 0; first < p.num_experts; first += kPrepareThreads) {
    const int64_t expert = first + thread;
    const bool counted = expert < p.num_experts && !bad;
    const int32_t begin = counted ? p.offsets[expert] : 0;
    const int32_t end = counted ? p.offsets[expert + 1] : 0;
    if (expert < p.num_experts) grouping.offsets[expert + 1] = end;
    const int32_t tiles = (end - begin + device::kTileRows - 1) / device::kTileRows;
    const int32_t prefix = device::scan_block<kPrepareThreads>(tiles, shared);
    const int32_t last = num_tiles + prefix;
    for (int32_t i = 0; i < tiles; ++i) {
      grouping.tiles[last - tiles + i] =
          make_int2(static_cast<int32_t>(expert), begin + i * device::kTileRows);
    }
    __syncthreads();
    if (thread == kPrepareThreads - 1) num_tiles = last;
    __syncthreads();
  }
  if (thread == 0) *grouping.num_tiles = num_tiles;
  if (bad && thread == 0) atomicOr(p.error, kErrorCounts);
}

__device__ float score_at(const Scores& scores, int64_t token, int64_t choice) {
  if (scores.data == nullptr) return 1.0f;
  return device::load_scalar(scores.data + token * scores.stride[0] + choice * scores.stride[1],
                             scores.dtype);
}

// One warp a token reads its row once. Eight chunks of a lane are under way.
__global__ void __launch_bounds__(kWarpThreads) spread_kernel(SpreadArguments p) {
  constexpr int kChunks = 8;
  const int64_t num_sorted = *p.num_sorted;
  const int64_t token = (blockIdx.x * static_cast<int64_t>(kWarpThreads) + threadIdx.x) / 32;
  if (token >= p.num_tokens) return;
  const char* from = p.rows + token * p.row_stride;
  for (int64_t first = (threadIdx.x & 31) * 16; first < p.row_bytes; first += kChunks * 512) {
    uint4 chunk[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int64_t at = first + i * 512;
      if (at < p.row_bytes) chunk[i] = __ldg(reinterpret_cast<const uint4*>(from + at));
    }
    for (int64_t k = 0; k < p.num_choices; ++k) {
      const int64_t row = p.slot_row[token * p.num_choices + k];
      if (row < 0 || row >= num_sorted) continue;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int64_t at = first + i * 512;
        if (at < p.row_bytes) *reinterpret_cast<uint4*>(p.out + row * p.row_bytes + at) = chunk[i];
      }
    }
  }
}

// Eight values of a 16-byte chunk.
template <typename T>
__device__ void add_chunk(const uint4& chunk, float weight, float (&sum)[8]) {
  const uint32_t word[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = device::unpack<T>(word[i]);
    sum[2 * i] = fmaf(weight, pair.x, sum[2 * i]);
    sum[2 * i + 1] = fmaf(weight, pair.y, sum[2 * i + 1]);
  }
}

// One warp a token. 16-byte loads; the choices' rows are independent loads in flight.
template <typename T>
__global__ void __launch_bounds__(kWarpThreads) combine_kernel(CombineArguments<T> p) {
  const int64_t num_sorted = *p.num_sorted;
  const int lane = threadIdx.x & 31;
  const int64_t token = (blockIdx.x * static_cast<int64_t>(kWarpThreads) + threadIdx.x) / 32;
  if (token >= p.num_tokens) return;
  const int32_t* slots = p.slot_row + token * p.num_choices;
  for (int64_t column = lane * 8; column < p.dim; column += 256) {
    float sum[8] = {};
#pragma unroll 4
    for (int64_t k = 0; k < p.num_choices; ++k) {
      const int64_t row = slots[k];
      if (row < 0 || row >= num_sorted) continue;
      add_chunk<T>(__ldg(reinterpret_cast<const uint4*>(p.rows + row * p.dim + column)),
                   score_at(p.scores, token, k), sum);
    }
    uint4 out;
    out.x = device::pack<T>(sum[0], sum[1]);
    out.y = device::pack<T>(sum[2], sum[3]);
    out.z = device::pack<T>(sum[4], sum[5]);
    out.w = device::pack<T>(sum[6], sum[7]);
    *reinterpret_cast<uint4*>(p.out + token * p.out_stride + column) = out;
  }
}

template <typename T>
__global__ void zero_tail_kernel(const int32_t* end, int64_t num_rows, T* out, int64_t out_stride,
                                 int64_t dim) {
  for (int64_t row = *end + static_cast<int64_t>(blockIdx.x); row < num_rows; row += gridDim.x) {
    for (int64_t column = threadIdx.x * 8; column < dim; column += blockDim.x * 8) {
      *reinterpret_cast<uint4*>(out + row * out_stride + column) = make_uint4(0, 0, 0, 0);
    }
  }
}

constexpr int kSumColumns = 256;  // of a block: 32 chunks
constexpr int kSumRows = 16;      // rows that a block reads at a time

// Each thread sums every kSumRows-th row of eight columns, then the first threads add those sums
// in order.
template <typename T>
__global__ void __launch_bounds__(32 * kSumRows)
    sum_columns_kernel(ColumnSums p, const int32_t* offsets) {
  __shared__ float partial[kSumRows][kSumColumns];
  const int64_t expert = blockIdx.y;
  const int chunk = threadIdx.x & 31;
  const int row_lane = threadIdx.x >> 5;
  const int64_t column = blockIdx.x * static_cast<int64_t>(kSumColumns) + chunk * 8;
  float sum[8] = {};
  if (column < p.num_columns) {
    const int64_t end = offsets[expert + 1];
#pragma unroll 4
    for (int64_t row = offsets[expert] + row_lane; row < end; row += kSumRows) {
      const int64_t stored = p.rows.row_index == nullptr ? row : p.rows.row_index[row];
      if (stored < 0) continue;
      const uint4 chunk_of_row =
          __ldg(reinterpret_cast<const uint4*>(p.rows.at(0, stored, column, sizeof(T))));
      add_chunk<T>(chunk_of_row, p.row_weight == nullptr ? 1.0f : p.row_weight[row], sum);
    }
  }
  for (int i = 0; i < 8; ++i) partial[row_lane][chunk * 8 + i] = sum[i];
  __syncthreads();
  if (threadIdx.x >= kSumColumns) return;
  const int64_t at = blockIdx.x * static_cast<int64_t>(kSumColumns) + threadIdx.x;
  if (at >= p.num_columns) return;
  float total = 0;
  for (int i = 0; i < kSumRows; ++i) total += partial[i][threadIdx.x];
  const bool up = p.blocks ? device::is_up(at) : p.pairs && at % 2 == 1;
  const int64_t index = p.blocks ? device::unblocked(at) : p.pairs ? at / 2 : at;
  if (up ? p.skip_up : p.skip_gate && (p.blocks || p.pairs)) return;
  char* to = p.out.at(expert, index, up && !p.skip_gate);
  if (p.accumulate) total += device::load_scalar(to, p.out.dtype);
  device::store_scalar(to, p.out.dtype, total);
}

__device__ int64_t expert_of_row(const int32_t* offsets, int64_t num_experts, int64_t row) {
  int64_t low = 0;
  int64_t high = num_experts;  // offsets[low] <= row < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

// One warp a slot.
template <typename T>
__global__ void __launch_bounds__(kWarpThreads)
    score_gradient_kernel(ScoreGradient p, const int32_t* offsets, int64_t num_experts) {
  const int lane = threadIdx.x & 31;
  const int64_t slot = (blockIdx.x * static_cast<int64_t>(kWarpThreads) + threadIdx.x) / 32;
  if (slot >= p.num_tokens * p.num_choices) return;
  const int64_t row = p.slot_row[slot];
  const int64_t token = slot / p.num_choices;
  float sum = 0;
  if (row >= 0 && row < offsets[num_experts]) {
    for (int64_t i = lane; i < p.num_parts; i += 32) sum += p.parts[row * p.num_parts + i];
    if (p.bias.base != nullptr) {
      const int64_t expert = expert_of_row(offsets, num_experts, row);
      for (int64_t column = lane; column < p.dim; column += 32) {
        sum += device::load_scalar(p.bias.at(expert, column), p.bias.dtype) *
               static_cast<float>(*reinterpret_cast<const T*>(p.dy.base + token * p.dy.row_stride +
                                                              column * sizeof(T)));
      }
    }
    sum = device::sum_warp(sum);
  }
  if (lane == 0) {
    device::store_scalar(
        p.out.data + token * p.out.stride[0] + (slot - token * p.num_choices) * p.out.stride[1],
        p.out.dtype, sum);
  }
}

}  // namespace

void prepare(const PrepareArguments& arguments, const Grouping& grouping, cudaStream_t stream) {
  const int64_t rows = grouping.row_token == nullptr ? 0 : arguments.num_rows;
  prepare_kernel<<<1 + grid_blocks(rows, kPrepareThreads), kPrepareThreads, 0, stream>>>(arguments,
                                                                                         grouping);
  check_launch("experts: prepare");
}

void spread(const SpreadArguments& arguments, cudaStream_t stream) {
  if (arguments.num_tokens == 0) return;
  spread_kernel<<<grid_blocks(arguments.num_tokens * 32, kWarpThreads), kWarpThreads, 0, stream>>>(
      arguments);
  check_launch("experts: spread");
}

template <typename T>
void combine(const CombineArguments<T>& arguments, cudaStream_t stream) {
  if (arguments.num_tokens == 0) return;
  combine_kernel<T>
      <<<grid_blocks(arguments.num_tokens * 32, kWarpThreads), kWarpThreads, 0, stream>>>(
          arguments);
  check_launch("experts: combine");
}

template <typename T>
void zero_tail(const Grouping& grouping, int64_t num_experts, int64_t num_rows, T* out,
               int64_t out_stride, int64_t dim, cudaStream_t stream) {
  if (num_rows == 0) return;
  constexpr int64_t kMaxBlocks = 1024;
  zero_tail_kernel<T><<<static_cast<unsigned>(std::min(num_rows, kMaxBlocks)), 128, 0, stream>>>(
      grouping.offsets + num_experts, num_rows, out, out_stride, dim);
  check_launch("experts: zero_tail");
}

template <typename T>
void sum_columns(const ColumnSums& sums, const Grouping& grouping, int64_t num_experts,
                 cudaStream_t stream) {
  if (num_experts == 0 || sums.num_columns == 0) return;
  const dim3 grid(grid_blocks(sums.num_columns, kSumColumns), static_cast<unsigned>(num_experts));
  sum_columns_kernel<T><<<grid, 32 * kSumRows, 0, stream>>>(sums, grouping.offsets);
  check_launch("experts: sum_columns");
}

template <typename T>
void score_gradient(const ScoreGradient& gradient, const Grouping& grouping, int64_t num_experts,
                    cudaStream_t stream) {
  const int64_t slots = gradient.num_tokens * gradient.num_choices;
  if (slots == 0) return;
  score_gradient_kernel<T><<<grid_blocks(slots * 32, kWarpThreads), kWarpThreads, 0, stream>>>(
      gradient, grouping.offsets, num_experts);
  check_launch("experts: score_gradient");
}

template void combine<bf16>(const CombineArguments<bf16>&, cudaStream_t);
template void combine<fp16>(const CombineArguments<fp16>&, cudaStream_t);
template void zero_tail<bf16>(const Grouping&, int64_t, int64_t, bf16*, int64_t, int64_t,
                              cudaStream_t);
template void zero_tail<fp16>(const Grouping&, int64_t, int64_t, fp16*, int64_t, int64_t,
                              cudaStream_t);
template void sum_columns<bf16>(const ColumnSums&, const Grouping&, int64_t, cudaStream_t);
template void sum_columns<fp16>(const ColumnSums&, const Grouping&, int64_t, cudaStream_t);
template void score_gradient<bf16>(const ScoreGradient&, const Grouping&, int64_t, cudaStream_t);
template void score_gradient<fp16>(const ScoreGradient&, const Grouping&, int64_t, cudaStream_t);

}  // namespace amoeba::kernels::cuda
