// The operators on the CPU: the kernels run in LibTorch's own thread pool.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "base/executor.h"
#include "ops/operators.h"

namespace amoeba::ops {
namespace {

namespace cpu = kernels::cpu;

// LibTorch gives each thread one range of equal length, but slices cost unequally: gradients in new
// memory, a core that another program holds. So threads take slices as they finish.
void run_on_torch_threads(void*, int64_t count, Executor::Body body, void* body_context) {
  const auto num_threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  const int64_t step = std::max<int64_t>(1, count / (8 * std::max<int64_t>(1, num_threads)));
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, num_threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin = next.fetch_add(step); begin < count; begin = next.fetch_add(step)) {
      body(body_context, begin, std::min(begin + step, count));
    }
  });
}

Executor torch_executor() {
  return {nullptr, static_cast<int>(torch::stable::get_num_threads()), run_on_torch_threads};
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
