// The operators on the CPU: the kernels run in LibTorch's own thread pool.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "base/executor.h"
#include "ops/operators.h"

namespace amoeba::ops {
namespace {

namespace cpu = kernels::cpu;

Executor torch_executor() {
  Executor executor;
  executor.num_threads = static_cast<int>(torch::stable::get_num_threads());
  executor.parallel_for = [](void*, int64_t count, Executor::Body body, void* body_context) {
    torch::stable::parallel_for(
        0, count, 1, [&](int64_t begin, int64_t end) { body(body_context, begin, end); });
  };
  return executor;
}

constexpr Device kCpu = {
    true,
    15,  // the rows of an expert are padded to 16 lanes
    [](const Tensor&) -> std::shared_ptr<void> { return nullptr; },
    &cpu::variants,
    &cpu::choose_variant,
    &cpu::workspace,
    [](const kernels::RouteArguments& arguments, const Tensor&) {
      cpu::route(arguments, torch_executor());
    },
    [](const kernels::Variant& variant, const kernels::ExpertsArguments& arguments,
       const kernels::ExpertsOptions& options, const kernels::View& y, void* saved, void* scratch) {
      cpu::experts_forward(variant, arguments, options, y, saved, scratch, torch_executor());
    },
    [](const kernels::Variant& variant, const kernels::ExpertsArguments& arguments,
       const kernels::ExpertsOptions& options, const kernels::View& dy, const void* saved,
       const kernels::ExpertsGradients& gradients, void* scratch) {
      cpu::experts_backward(variant, arguments, options, dy, saved, gradients, scratch,
                            torch_executor());
    },
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amoeba, CPU, library) { register_operators<kCpu>(library); }

}  // namespace amoeba::ops
