// The ring of stages between the thread that copies and the warps that compute, on sm_90a.
#pragma once

#include "kernels/cuda/device/matrix.cuh"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace amoeba::kernels::cuda::device {

struct Sm90 {
  static constexpr int kPair = 2;
  static constexpr int kColumns = 256;
  static constexpr int kHalf = 128;  // columns of b that one block of a pair copies
  static constexpr int kDepth = 64;
  static constexpr int kGroupThreads = 128;
  static constexpr int kThreads = 3 * kGroupThreads;
  static constexpr int kComputingWarps = 8;
  static constexpr int kBlockBytes = 64 * kDepth * 2;  // 64 columns of an mn-major operand
  static constexpr int kBytesA = kTileRows * kDepth * 2;
  static constexpr int kBytesHalf = kHalf * kDepth * 2;
  static constexpr int kStageBytes = kBytesA + 2 * kBytesHalf;
  static constexpr int kBarrierBytes = 1024;  // of the stages in the first half, then of the turns
  // Registers of a thread that copies and one that computes; together what the block starts with.
  static constexpr int kCopyRegisters = 40;
  static constexpr int kComputeRegisters = 232;
  static_assert(kCopyRegisters + 2 * kComputeRegisters <= 3 * 168);
  static constexpr uint32_t kRasterPairs = 8;  // near in time, sharing weights in the cache
};

// The ring of stages, as one side walks through it.
template <int kStages>
struct Sm90Pipeline {
  uint32_t stages;    // shared addresses
  uint32_t barriers;  // full [kStages], empty [kStages]
  uint32_t index = 0;
  uint32_t parity = 0;

  __device__ uint32_t full() const { return barriers + index * 8; }
  __device__ uint32_t empty() const { return empty(index); }
  __device__ uint32_t empty(uint32_t at) const { return barriers + (kStages + at) * 8; }
  __device__ uint32_t stage() const { return stages + index * Sm90::kStageBytes; }
  __device__ void advance() {
    index = index + 1 == kStages ? 0 : index + 1;
    parity ^= index == 0 ? 1 : 0;
  }
};

// A stage that a computing warp no longer reads, to both blocks of the pair.
template <int kStages>
__device__ void release(const Sm90Pipeline<kStages>& pipeline, uint32_t index) {
  const uint32_t lane = threadIdx.x & 31;
  if (lane < Sm90::kPair) arrive_at(pipeline.empty(index), lane);
}

}  // namespace amoeba::kernels::cuda::device
