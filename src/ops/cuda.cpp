// The operators on CUDA: kernels are queued on torch's current stream of the tensors' device.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "ops/cuda_stream.h"
#include "ops/operators.h"

namespace amoeba::ops {
namespace {

namespace cuda = kernels::cuda;

constexpr Device kCuda = {
    false,
    0,
    [](const Tensor& like) -> std::shared_ptr<void> {
      return std::make_shared<torch::stable::accelerator::DeviceGuard>(like.get_device_index());
    },
    &cuda::variants,
    &cuda::choose_variant,
    &cuda::workspace,
    [](const kernels::RouteArguments& arguments, const Tensor& like) {
      const kernels::View& ids = arguments.expert_ids;
      const int64_t num_bytes =
          cuda::route_scratch_bytes(ids.size[0] * ids.size[1], arguments.num_experts);
      const Tensor scratch = new_bytes(like, num_bytes);
      cuda::route(arguments, scratch.data_ptr(), current_stream());
    },
    [](const kernels::Variant& variant, const kernels::ExpertsArguments& arguments,
       const kernels::ExpertsOptions& options, const kernels::View& y, void* saved, void* scratch) {
      cuda::experts_forward(variant, arguments, options, y, saved, scratch, current_stream());
    },
    [](const kernels::Variant& variant, const kernels::ExpertsArguments& arguments,
       const kernels::ExpertsOptions& options, const kernels::View& dy, const void* saved,
       const kernels::ExpertsGradients& gradients, void* scratch) {
      cuda::experts_backward(variant, arguments, options, dy, saved, gradients, scratch,
                             current_stream());
    },
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amoeba, CUDA, library) { register_operators<kCuda>(library); }

}  // namespace amoeba::ops
