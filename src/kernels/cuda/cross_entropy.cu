// Cross entropy of rows of logits: a block has a row, which it reads once for its largest value and
// the sum of exponentials and once more, from its end, for the gradient: what was read last is
// still in the second-level cache.
#include <cfloat>

#include "kernels/cuda/device/row.cuh"
#include "kernels/cuda/dtype.h"
#include "kernels/cuda/launch.h"
#include "kernels/layers.h"

namespace amoeba::kernels::cuda {

using device::kPiece;

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kStep = kThreads * kPiece;

// Largest value so far and the sum of e^(value - largest).
struct Softmax {
  float largest = -FLT_MAX;
  float sum = 0;
};

__device__ Softmax merge(Softmax a, Softmax b) {
  const float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

__device__ Softmax read_row(const float* row, int64_t vocab, bool wide) {
  Softmax all;
#pragma unroll 2
  for (int64_t v = threadIdx.x * kPiece; v < vocab; v += kStep) {
    float logit[kPiece];
    device::load_piece(logit, row + v, vocab - v, wide, -INFINITY);
    float largest = all.largest;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) largest = fmaxf(largest, logit[i]);
    if (largest > all.largest) all = {largest, all.sum * expf(all.largest - largest)};
#pragma unroll
    for (int i = 0; i < kPiece; ++i) all.sum += expf(logit[i] - all.largest);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    all = merge(all, {__shfl_xor_sync(0xffffffffu, all.largest, distance),
                      __shfl_xor_sync(0xffffffffu, all.sum, distance)});
  }
  __shared__ Softmax shared[kWarps];
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = all;
  __syncthreads();
  all = shared[0];
  for (int warp = 1; warp < kWarps; ++warp) all = merge(all, shared[warp]);
  return all;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const float* logits, const int64_t* targets, int64_t vocab, float* losses,
                         T* dlogits, bool wide) {
  const int64_t t = blockIdx.x;
  const float* row = logits + t * vocab;
  const int64_t target = targets[t];
  const bool valid = target >= 0 && target < vocab;
  const Softmax all = valid ? read_row(row, vocab, wide) : Softmax();
  if (threadIdx.x == 0) {
    losses[t] = valid ? all.largest - row[target] + logf(all.sum) : target == kIgnored ? 0.0f : NAN;
  }
  if (dlogits == nullptr) return;
  const float scale = valid ? 1.0f / all.sum : 0.0f;
  const int64_t last = (vocab - 1) / kStep * kStep + threadIdx.x * kPiece;
#pragma unroll 2
  for (int64_t v = last; v >= 0; v -= kStep) {
    if (v >= vocab) continue;
    float value[kPiece] = {};
    if (valid) {
      device::load_piece(value, row + v, vocab - v, wide);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        value[i] = expf(value[i] - all.largest) * scale - (v + i == target ? 1.0f : 0.0f);
      }
    }
    device::store_piece(dlogits + t * vocab + v, value, vocab - v, wide);
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& p, Stream stream) {
  if (p.num_rows == 0) return;
  const bool wide = device::rows_are_wide(p.vocab, p.logits, p.dlogits);
  with_type(p.dtype, "cross_entropy", [&]<typename T>(T) {
    cross_entropy_kernel<T>
        <<<grid_blocks(p.num_rows, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            p.logits, p.targets, p.vocab, p.losses, static_cast<T*>(p.dlogits), wide);
  });
  check_launch("cross_entropy");
}

}  // namespace amoeba::kernels::cuda
