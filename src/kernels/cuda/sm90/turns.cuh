// Which tiles a pair of blocks computes, on sm_90a.
#pragma once

#include "kernels/cuda/device/tiles.cuh"
#include "kernels/cuda/sm90/pipeline.cuh"

namespace amoeba::kernels::cuda::device {

// By rows all tiles take equally long, and pairs of blocks take them in turn. By depth a tile lasts
// as long as its expert has rows, so a pair draws the number of its next one when it has copied
// all of the last: what a tile holds does not depend on who computes it. The copying thread of the
// first block draws, and tells the other one and the computing warps of both blocks by a ring of
// numbers in shared memory.
template <Grouping kGrouping>
class Sm90Turns {
 public:
  static constexpr int kSlots = 4;
  static constexpr int kBytes = kSlots * (8 + 8 + 4);

  // `space` is an address in shared memory, the same in both blocks.
  __device__ Sm90Turns(uint32_t space, uint32_t* drawn) : space_(space), drawn_(drawn) {}

  // By one thread of each block, before any other uses it.
  __device__ void init() const {
    for (uint32_t i = 0; i < kSlots; ++i) {
      init_barrier(space_ + 8 * i, 1);
      init_barrier(space_ + 8 * (kSlots + i), 1 + Sm90::kPair * Sm90::kComputingWarps);
    }
  }

  static __device__ uint32_t first() { return blockIdx.x / Sm90::kPair; }

  // By the copying thread of block `rank` of the pair.
  __device__ uint32_t next_to_copy(uint32_t index, uint32_t rank) {
    if constexpr (!kDraws) return index + num_pairs();
    if (rank > 0) {
      const uint32_t next = read();
      arrive_across(empty(), 0);
      advance();
      return next;
    }
    const uint32_t next = num_pairs() + atomicAdd(drawn_, 1u);
    wait_across(empty(), parity_ ^ 1);
    for (uint32_t to = 0; to < Sm90::kPair; ++to) {
      store_across(number(), to, next);
      arrive_across(full(), to);
    }
    advance();
    return next;
  }

  // By a computing warp.
  __device__ uint32_t next_to_compute(uint32_t index) {
    if constexpr (!kDraws) return index + num_pairs();
    const uint32_t next = read();
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive_across(empty(), 0);
    advance();
    return next;
  }

 private:
  static constexpr bool kDraws = kGrouping == Grouping::kByDepth;

  static __device__ uint32_t num_pairs() { return gridDim.x / Sm90::kPair; }
  __device__ uint32_t full() const { return space_ + 8 * slot_; }
  __device__ uint32_t empty() const { return space_ + 8 * (kSlots + slot_); }
  __device__ uint32_t number() const { return space_ + 16 * kSlots + 4 * slot_; }
  __device__ uint32_t read() const {
    wait_across(full(), parity_);
    return load_word(number());
  }
  __device__ void advance() {
    slot_ = slot_ + 1 == kSlots ? 0 : slot_ + 1;
    parity_ ^= slot_ == 0 ? 1 : 0;
  }

  uint32_t space_;
  uint32_t* drawn_;
  uint32_t slot_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace amoeba::kernels::cuda::device
