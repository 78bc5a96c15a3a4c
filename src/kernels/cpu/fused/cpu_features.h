// What this CPU can run and the operating system saves the registers of.
#pragma once

namespace amoeba::kernels::cpu {

struct CpuFeatures {
  bool avx2_fma = false;
  bool avx512 = false;           // F, BW, DQ and VL
  bool avx512_bf16 = false;      // with the above
  bool amx_bf16 = false;         // with the above, and this process may use tiles
  bool slow_bf16_pairs = false;  // vdpbf16ps at half the rate of fp32 products: Intel's
};
CpuFeatures cpu_features();

}  // namespace amoeba::kernels::cpu
