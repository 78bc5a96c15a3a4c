// Running the fused kernels of one instruction set: how rows are split, where intermediate results
// lie, which region follows which.
#pragma once

#include "kernels/cpu/fused/pass.h"
#include "kernels/cpu/implementation.h"

namespace amoeba::kernels::cpu {

// What the fused kernels cannot do on any CPU; "" when they can.
std::string fused_refusal(const ExpertsArguments& arguments, const ExpertsOptions& options);

WorkspaceSizes fused_workspace(const FusedKernels& kernels, const Call& call);
void fused_forward(const FusedKernels& kernels, const Call& call, const View& y, void* saved,
                   void* scratch, const Executor& executor);
void fused_backward(const FusedKernels& kernels, const Call& call, const View& dy,
                    const void* saved, const ExpertsGradients& gradients,
                    const Matrices& weight_gradients, void* scratch, const Executor& executor);

// The implementation whose kernels kKernels chooses for a call, alike forward and backward.
template <const FusedKernels& (*kKernels)(const Call&)>
constexpr Implementation implementation(Variant variant) {
  return {
      variant, [](const Call& call) { return fused_workspace(kKernels(call), call); },
      [](const Call& call, const View& y, void* saved, void* scratch, const Executor& executor) {
        fused_forward(kKernels(call), call, y, saved, scratch, executor);
      },
      [](const Call& call, const View& dy, const void* saved, const ExpertsGradients& gradients,
         const Matrices& weight_gradients, void* scratch, const Executor& executor) {
        fused_backward(kKernels(call), call, dy, saved, gradients, weight_gradients, scratch,
                       executor);
      }};
}

}  // namespace amoeba::kernels::cpu
