// The fused variants of x86-64, best first.
#include "kernels/cpu/fused/cpu_features.h"
#include "kernels/cpu/fused/fused.h"
#include "kernels/cpu/fused/kernels.h"
#include "kernels/cpu/implementation.h"

namespace amoeba::kernels::cpu {
namespace {

const FusedKernels& amx_bf16(const Call&) { return kAmxBf16; }

bool is_fp32(const Call& call) { return call.arguments.x.dtype == DType::kF32; }

const FusedKernels& avx512(const Call& call) { return is_fp32(call) ? kAvx512Fp32 : kAvx512Bf16; }
const FusedKernels& avx2(const Call& call) { return is_fp32(call) ? kAvx2Fp32 : kAvx2Bf16; }

// Intel's cores multiply pairs at half the rate of fp32 (measured on a Xeon of model 207): reading
// half the bytes wins only while reading is the limit.
const FusedKernels& avx512_bf16(const Call& call) {
  constexpr int64_t kManyRows = 32;  // an expert, on average
  const bool has_many = call.sizes.num_rows >= kManyRows * call.sizes.num_experts;
  return cpu_features().slow_bf16_pairs && has_many ? kAvx512Bf16 : kAvx512Bf16Pairs;
}

std::string bf16_refusal(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  if (arguments.x.dtype != DType::kBF16) {
    return std::string("dtype ") + name_of(arguments.x.dtype) + ", want bf16";
  }
  return fused_refusal(arguments, options);
}
std::string supports_amx_bf16(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  const std::string reason = bf16_refusal(arguments, options);
  if (!reason.empty() || cpu_features().amx_bf16) return reason;
  return "needs AMX-BF16: this CPU or operating system does not offer it";
}
std::string supports_avx512_bf16(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  if (!cpu_features().avx512_bf16) return "this CPU has no AVX512-BF16";
  return bf16_refusal(arguments, options);
}
std::string supports_avx512(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  if (!cpu_features().avx512) return "this CPU has no AVX-512 (F, BW, DQ, VL)";
  return fused_refusal(arguments, options);
}
std::string supports_avx2(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  if (!cpu_features().avx2_fma) return "this CPU has no AVX2 with FMA";
  return fused_refusal(arguments, options);
}

constexpr Implementation kFused[] = {
    implementation<amx_bf16>({"amx_bf16",
                              "AMX-BF16: bf16 products of tiles (tdpbf16ps); tested on emulated "
                              "tiles and on a Xeon with AMX",
                              supports_amx_bf16}),
    implementation<avx512_bf16>(
        {"avx512_bf16", "AVX512-BF16: bf16 products of pairs (vdpbf16ps) where they are fastest",
         supports_avx512_bf16}),
    implementation<avx512>({"avx512", "AVX-512: fp32, and bf16 widened to fp32", supports_avx512}),
    implementation<avx2>({"avx2", "AVX2 and FMA: fp32, and bf16 widened to fp32", supports_avx2}),
};

}  // namespace

std::span<const Implementation> fused_implementations() { return kFused; }

}  // namespace amoeba::kernels::cpu
