#include "kernels/cpu/fused/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace amoeba::kernels::cpu {
namespace {

// Bits of the extended control register 0: register state that the operating system saves.
constexpr uint64_t kSseAvxState = 0x6;
constexpr uint64_t kAvx512State = 0xe0;   // masks, upper halves, upper registers
constexpr uint64_t kTileState = 0x60000;  // configuration and data

uint64_t saved_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has_all(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

// CPUID leaf 7, register d; leaf 0x1d describes palette 1.
bool has_tiles(uint32_t leaf7d) {
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  uint32_t a, b, c, d;
  if (!has_all(leaf7d, kAmxBf16 | kAmxTile)) return false;
  if (__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) == 0) return false;
  const uint32_t num_registers = b >> 16, row_bytes = b & 0xffff, num_rows = c & 0xffff;
  return num_registers >= 8 && row_bytes >= 64 && num_rows >= 16;
}

// Linux saves tiles for a process that has asked once, for all of its threads (arch_prctl(2), from
// 5.16 on).
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuFeatures detect() {
  CpuFeatures features;
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
  if (!has_all(c, bit_OSXSAVE | bit_AVX | bit_FMA)) return features;
  const uint64_t state = saved_state();
  if ((state & kSseAvxState) != kSseAvxState) return features;

  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  features.avx2_fma = has_all(b, bit_AVX2);
  features.avx512 = features.avx2_fma && (state & kAvx512State) == kAvx512State &&
                    has_all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL);
  const uint32_t leaf7d = d;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return features;
  features.avx512_bf16 = features.avx512 && has_all(a, bit_AVX512BF16);
  features.amx_bf16 = features.avx512_bf16 && (state & kTileState) == kTileState &&
                      has_tiles(leaf7d) && may_use_tiles();
  features.slow_bf16_pairs = __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_INTEL_ebx;
  return features;
}

}  // namespace

CpuFeatures cpu_features() {
  static const CpuFeatures features = detect();  // cpuid takes microseconds in a virtual machine
  return features;
}

}  // namespace amoeba::kernels::cpu
