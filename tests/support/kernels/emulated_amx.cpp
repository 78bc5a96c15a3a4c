// The kernels of amx_bf16 with emulated instructions: vectors of the compiler's, pairs and tiles by
// plain loops.
#include <bit>
#include <cstring>

#include "kernels/cpu/fused/configurations.h"
#include "kernels/cpu/fused/fused.h"
#include "support/kernels/emulated_tiles.h"

namespace amoeba::test {
namespace {

namespace cpu = kernels::cpu;

struct EmulatedLanes {
  typedef float Vec __attribute__((vector_size(64)));
  typedef int32_t Words __attribute__((vector_size(64)));
  typedef uint16_t Shorts __attribute__((vector_size(32)));
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kRows = 8;
  static constexpr int64_t kMaxVectors = 2;

  // All bits: what is spread may be a pair.
  static Vec fill(float value) { return (Vec)(Words{} + std::bit_cast<int32_t>(value)); }
  static Vec fma(Vec a, Vec b, Vec sum) { return a * b + sum; }
  static void store(bool, float* to, Vec value) { std::memcpy(to, &value, sizeof value); }
  static void finish_streams() {}
  static Vec multiply_add_pairs(Vec a, Vec b, Vec sum) {
    const auto x = (Words)a, y = (Words)b;
    for (int i = 0; i < 16; ++i) {
      sum[i] = add_pair(static_cast<uint32_t>(x[i]), static_cast<uint32_t>(y[i]), sum[i]);
    }
    return sum;
  }
};

const cpu::FusedKernels kKernels =
    cpu::tile_kernels_of<cpu::Bf16Tiles<EmulatedLanes, EmulatedTiles>>();

const cpu::FusedKernels& kernels_for(const cpu::Call&) { return kKernels; }

std::string supports(const kernels::ExpertsArguments& arguments,
                     const kernels::ExpertsOptions& options) {
  if (arguments.x.dtype != kernels::DType::kBF16) return "want bf16";
  return cpu::fused_refusal(arguments, options);
}

}  // namespace

const cpu::Implementation& emulated_amx() {
  static const cpu::Implementation implementation = cpu::implementation<kernels_for>(
      {"amx_bf16_emulated", "AMX-BF16 with emulated tiles", supports});
  return implementation;
}

}  // namespace amoeba::test
