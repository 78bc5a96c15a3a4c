// The tile instructions of AMX-BF16 by plain loops, on any CPU, and the AMX variant on them.
#pragma once

#include <cstdint>

#include "kernels/cpu/fused/tiles.h"
#include "kernels/cpu/implementation.h"

namespace amoeba::test {

// Registers and their shapes, each thread its own, as on the CPU. What a CPU answers with a fault
// (no shapes, shapes that do not fit together) is an Error(kUsage) here.
class EmulatedTiles {
 public:
  static void configure(const kernels::cpu::TileShapes& shapes);
  static void release();
  static bool is_configured();      // on this thread
  static int64_t num_multiplied();  // multiply_adds of this thread so far

  template <int kTile>
  static void zero() {
    zero(kTile);
  }
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    load(kTile, from, stride);
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    store(kTile, to, stride);
  }
  template <int kSum, int kLeft, int kRight>
  static void multiply_add() {
    multiply_add(kSum, kLeft, kRight);
  }

  // The same with numbers that are known when run.
  static void zero(int tile);
  static void load(int tile, const void* from, int64_t stride);
  static void store(int tile, void* to, int64_t stride);
  static void multiply_add(int sum, int left, int right);
};

// sum + the products of a pair of bf16 that share a word, as vdpbf16ps adds them.
float add_pair(uint32_t a, uint32_t b, float sum);

// "amx_bf16_emulated": the source of amx_bf16 with these instructions. No library lists it.
const kernels::cpu::Implementation& emulated_amx();

}  // namespace amoeba::test
