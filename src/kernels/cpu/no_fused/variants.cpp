// Linked where no fused kernels exist for the machine's instruction set.
#include "kernels/cpu/implementation.h"

namespace amoeba::kernels::cpu {

std::span<const Implementation> fused_implementations() { return {}; }

}  // namespace amoeba::kernels::cpu
