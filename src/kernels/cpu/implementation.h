// What a CPU variant consists of. The public functions check the arguments, choose and call these.
#pragma once

#include <span>

#include "amoeba/kernels.h"
#include "kernels/problem.h"

namespace amoeba::kernels::cpu {

// Everything forward and backward share, checked: kernels see matrices, never layouts.
struct Call {
  const ExpertsArguments& arguments;
  const ExpertsOptions& options;
  Sizes sizes;
  Matrices weights;
};

struct Implementation {
  Variant variant;
  WorkspaceSizes (*workspace)(const Call& call);
  void (*forward)(const Call& call, const View& y, void* saved, void* scratch,
                  const Executor& executor);
  // `weight_gradients` are those of `gradients`, as matrices.
  void (*backward)(const Call& call, const View& dy, const void* saved,
                   const ExpertsGradients& gradients, const Matrices& weight_gradients,
                   void* scratch, const Executor& executor);
};

// The public functions of the same names, for an implementation that need not be listed.
WorkspaceSizes workspace(const Implementation& implementation, const ExpertsArguments& arguments,
                         const ExpertsOptions& options);
void experts_forward(const Implementation& implementation, const ExpertsArguments& arguments,
                     const ExpertsOptions& options, const View& y, void* saved, void* scratch,
                     const Executor& executor);
void experts_backward(const Implementation& implementation, const ExpertsArguments& arguments,
                      const ExpertsOptions& options, const View& dy, const void* saved,
                      const ExpertsGradients& gradients, void* scratch, const Executor& executor);

extern const Implementation kReference;
// Those of this machine's instruction sets, best first; chosen at link time.
std::span<const Implementation> fused_implementations();

}  // namespace amoeba::kernels::cpu
