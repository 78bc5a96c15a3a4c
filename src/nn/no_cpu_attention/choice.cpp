// Where no kernels are written for the CPU.
#include "nn/cpu_attention/attention.h"

namespace amoeba::nn::cpu_attention {

const std::vector<const Kernels*>& supported_kernels() {
  static const std::vector<const Kernels*> none;
  return none;
}

}  // namespace amoeba::nn::cpu_attention
