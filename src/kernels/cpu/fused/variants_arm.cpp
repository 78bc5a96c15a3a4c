// The fused variants of 64-bit Arm.
#include "kernels/cpu/fused/fused.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/implementation.h"

namespace amoeba::kernels::cpu {
namespace {

const FusedKernels& neon(const Call& call) {
  return call.arguments.x.dtype == DType::kF32 ? kNeonFp32 : kNeonBf16;
}

constexpr Implementation kFused[] = {
    implementation<neon>({"neon", "NEON: fp32, and bf16 widened to fp32", fused_refusal}),
};

}  // namespace

std::span<const Implementation> fused_implementations() { return kFused; }

}  // namespace amoeba::kernels::cpu
