// The fused variants of x86-64, best first.
#include "kernels/cpu/fused/cpu_features.h"
#include "kernels/cpu/fused/fused.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/implementation.h"

namespace amoeba::kernels::cpu {
namespace {

const FusedKernels& avx512(DType dtype) { return dtype == DType::kF32 ? kAvx512Fp32 : kAvx512Bf16; }
const FusedKernels& avx512_bf16(DType) { return kAvx512Bf16Pairs; }
const FusedKernels& avx2(DType dtype) { return dtype == DType::kF32 ? kAvx2Fp32 : kAvx2Bf16; }

std::string supports_avx512_bf16(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  if (!cpu_features().avx512_bf16) return "this CPU has no AVX512-BF16";
  if (arguments.x.dtype != DType::kBF16) {
    return std::string("dtype ") + name_of(arguments.x.dtype) + ", want bf16";
  }
  return fused_refusal(arguments, options);
}
std::string supports_avx512(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  if (!cpu_features().avx512) return "this CPU has no AVX-512 (F, BW, DQ, VL)";
  return fused_refusal(arguments, options);
}
std::string supports_avx2(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  if (!cpu_features().avx2_fma) return "this CPU has no AVX2 with FMA";
  return fused_refusal(arguments, options);
}

template <const FusedKernels& (*kKernels)(DType)>
constexpr Implementation implementation(Variant variant) {
  return {
      variant,
      [](const Call& call) { return fused_workspace(kKernels(call.arguments.x.dtype), call); },
      [](const Call& call, const View& y, void* saved, void* scratch, const Executor& executor) {
        fused_forward(kKernels(call.arguments.x.dtype), call, y, saved, scratch, executor);
      },
      [](const Call& call, const View& dy, const void* saved, const ExpertsGradients& gradients,
         const Matrices& weight_gradients, void* scratch, const Executor& executor) {
        fused_backward(kKernels(call.arguments.x.dtype), call, dy, saved, gradients,
                       weight_gradients, scratch, executor);
      }};
}

constexpr Implementation kFused[] = {
    implementation<avx512_bf16>(
        {"avx512_bf16", "AVX512-BF16: bf16 products of pairs (vdpbf16ps)", supports_avx512_bf16}),
    implementation<avx512>({"avx512", "AVX-512: fp32, and bf16 widened to fp32", supports_avx512}),
    implementation<avx2>({"avx2", "AVX2 and FMA: fp32, and bf16 widened to fp32", supports_avx2}),
};

}  // namespace

std::span<const Implementation> fused_implementations() { return kFused; }

}  // namespace amoeba::kernels::cpu
