// What an operator needs from a device: the kernels' functions with the device's pool or stream
// filled in. The checks and the allocation around them are the same everywhere.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "amoeba/kernels.h"
#include "ops/checks.h"

namespace amoeba::ops {

struct Device {
  bool is_host;        // its memory can be read and written here
  int64_t extra_rows;  // that a variant may keep for each expert, beyond the routed rows
  // Makes the device of a tensor the current one for as long as the result lives.
  std::shared_ptr<void> (*enter)(const Tensor& like);
  const std::vector<kernels::Variant>& (*variants)();
  const kernels::Variant& (*choose_variant)(const kernels::ExpertsArguments& arguments,
                                            const kernels::ExpertsOptions& options,
                                            std::string_view name);
  kernels::WorkspaceSizes (*workspace)(const kernels::Variant& variant,
                                       const kernels::ExpertsArguments& arguments,
                                       const kernels::ExpertsOptions& options);
  void (*route)(const kernels::RouteArguments& arguments, const Tensor& like);
  void (*experts_forward)(const kernels::Variant& variant,
                          const kernels::ExpertsArguments& arguments,
                          const kernels::ExpertsOptions& options, const kernels::View& y,
                          void* saved, void* scratch);
  void (*experts_backward)(const kernels::Variant& variant,
                           const kernels::ExpertsArguments& arguments,
                           const kernels::ExpertsOptions& options, const kernels::View& dy,
                           const void* saved, const kernels::ExpertsGradients& gradients,
                           void* scratch);
};

}  // namespace amoeba::ops
