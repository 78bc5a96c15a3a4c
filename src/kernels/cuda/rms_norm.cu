// The root-mean-square norm. A warp has a row, which it reads twice, the second time from a cache.
// Backward, a block has kBlockRows rows and adds up their part of the weight's gradient; a second
// kernel adds these parts in order.
#include "kernels/cuda/device/row.cuh"
#include "kernels/cuda/dtype.h"
#include "kernels/cuda/launch.h"
#include "kernels/layers.h"

namespace amoeba::kernels::cuda {

using device::kPiece;

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStep = 32 * kPiece;  // values of a row that a warp reads at once
constexpr int kBlockRows = 32;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* x, const float* weight, T* y, float* rstd_out, int64_t num_rows,
                   int64_t size, float eps, bool wide) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / 32;
  if (row >= num_rows) return;
  const int lane = threadIdx.x & 31;
  x += row * size;
  y += row * size;
  float sum = 0;
#pragma unroll 4
  for (int64_t d = lane * kPiece; d < size; d += kStep) {
    float value[kPiece];
    device::load_piece(value, x + d, size - d, wide);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sum += value[i] * value[i];
  }
  const float rstd = 1.0f / sqrtf(device::sum_warp(sum) / static_cast<float>(size) + eps);
  if (lane == 0) rstd_out[row] = rstd;
#pragma unroll 2
  for (int64_t d = lane * kPiece; d < size; d += kStep) {
    float value[kPiece], w[kPiece];
    device::load_piece(value, x + d, size - d, wide);
    device::load_piece(w, weight + d, size - d, wide);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) value[i] = value[i] * rstd * w[i];
    device::store_piece(y + d, value, size - d, wide);
  }
}

template <typename T>
struct Backward {
  const T *x, *dy, *passed;
  const float *weight, *rstd;
  T* dx;
  float* parts;  // [blocks, D]
  int64_t num_rows, size;
  bool wide;
};

template <typename T>
__device__ void backward_row(const Backward<T>& p, int64_t row) {
  const int lane = threadIdx.x & 31;
  const int64_t at = row * p.size;
  const float rstd = p.rstd[row];
  float sum = 0;
#pragma unroll 2
  for (int64_t d = lane * kPiece; d < p.size; d += kStep) {
    float x[kPiece], dy[kPiece], w[kPiece];
    device::load_piece(x, p.x + at + d, p.size - d, p.wide);
    device::load_piece(dy, p.dy + at + d, p.size - d, p.wide);
    device::load_piece(w, p.weight + d, p.size - d, p.wide);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sum += w[i] * dy[i] * x[i];
  }
  const float scale = rstd * rstd * rstd / static_cast<float>(p.size) * device::sum_warp(sum);
  for (int64_t d = lane * kPiece; d < p.size; d += kStep) {
    float x[kPiece], dy[kPiece], w[kPiece], dx[kPiece] = {};
    device::load_piece(x, p.x + at + d, p.size - d, p.wide);
    device::load_piece(dy, p.dy + at + d, p.size - d, p.wide);
    device::load_piece(w, p.weight + d, p.size - d, p.wide);
    if (p.passed != nullptr) device::load_piece(dx, p.passed + at + d, p.size - d, p.wide);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) dx[i] += rstd * w[i] * dy[i] - x[i] * scale;
    device::store_piece(p.dx + at + d, dx, p.size - d, p.wide);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Backward<T> p) {
  const int64_t first = blockIdx.x * static_cast<int64_t>(kBlockRows);
  const int64_t end = min(first + kBlockRows, p.num_rows);
  for (int64_t row = first + threadIdx.x / 32; row < end; row += kWarps) backward_row(p, row);
  for (int64_t d = threadIdx.x; d < p.size; d += kThreads) {
    float sum = 0;
#pragma unroll 8
    for (int64_t row = first; row < end; ++row) {
      const int64_t at = row * p.size + d;
      sum += static_cast<float>(p.dy[at]) * static_cast<float>(p.x[at]) * p.rstd[row];
    }
    p.parts[blockIdx.x * p.size + d] = sum;
  }
}

constexpr int kSumLanes = 32;  // threads that share a column

__global__ void __launch_bounds__(32 * kSumLanes)
    add_parts_kernel(const float* parts, int64_t num_parts, int64_t size, float* out) {
  __shared__ float shared[kSumLanes][32];
  const int column = threadIdx.x & 31;
  const int lane = threadIdx.x >> 5;
  const int64_t d = blockIdx.x * int64_t{32} + column;
  float sum = 0;
  if (d < size) {
#pragma unroll 4
    for (int64_t part = lane; part < num_parts; part += kSumLanes) sum += parts[part * size + d];
  }
  shared[lane][column] = sum;
  __syncthreads();
  if (lane > 0 || d >= size) return;
  float total = 0;
  for (int i = 0; i < kSumLanes; ++i) total += shared[i][column];
  out[d] += total;
}

}  // namespace

void rms_norm(const RmsNorm& norm, double eps, void* y, float* rstd, Stream stream) {
  if (norm.num_rows == 0 || norm.size == 0) return;
  const bool wide = device::rows_are_wide(norm.size, norm.x, norm.weight, y);
  with_type(norm.dtype, "rms_norm", [&]<typename T>(T) {
    forward_kernel<T>
        <<<grid_blocks(norm.num_rows, kWarps), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(norm.x), norm.weight, static_cast<T*>(y), rstd, norm.num_rows,
            norm.size, static_cast<float>(eps), wide);
  });
  check_launch("rms_norm");
}

int64_t rms_norm_scratch(int64_t num_rows) { return ceil_div(num_rows, kBlockRows); }

void rms_norm_backward(const RmsNorm& norm, const RmsNormGradient& gradient, Stream stream) {
  if (norm.num_rows == 0 || norm.size == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  const int64_t num_parts = rms_norm_scratch(norm.num_rows);
  const bool wide = device::rows_are_wide(norm.size, norm.x, norm.weight, gradient.dy,
                                          gradient.passed, gradient.dx);
  with_type(norm.dtype, "rms_norm_backward", [&]<typename T>(T) {
    backward_kernel<T><<<static_cast<unsigned>(num_parts), kThreads, 0, on>>>(
        {static_cast<const T*>(norm.x), static_cast<const T*>(gradient.dy),
         static_cast<const T*>(gradient.passed), norm.weight, gradient.rstd,
         static_cast<T*>(gradient.dx), gradient.scratch, norm.num_rows, norm.size, wide});
  });
  check_launch("rms_norm_backward");
  add_parts_kernel<<<grid_blocks(norm.size, 32), 32 * kSumLanes, 0, on>>>(
      gradient.scratch, num_parts, norm.size, gradient.dweight);
  check_launch("rms_norm_backward: parts");
}

}  // namespace amoeba::kernels::cuda
