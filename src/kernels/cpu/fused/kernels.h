// The kernels of each instruction set; one file each, compiled with flags of its own.
#pragma once

#include "kernels/cpu/fused/pass.h"

namespace amoeba::kernels::cpu {

extern const FusedKernels kAmxBf16;
extern const FusedKernels kAvx512Fp32, kAvx512Bf16, kAvx512Bf16Pairs;
extern const FusedKernels kAvx2Fp32, kAvx2Bf16;
extern const FusedKernels kNeonFp32, kNeonBf16;

}  // namespace amoeba::kernels::cpu
