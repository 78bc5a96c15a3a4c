// The operators, the same on every device: read the arguments, check them all, allocate, run.
#pragma once

#include <torch/csrc/stable/library.h>

#include "ops/device.h"

namespace amoeba::ops {

// Take their arguments from the stack and leave their results there, as the schemas say.
void route(const Device& device, StableIValue* stack);
void experts_forward(const Device& device, StableIValue* stack);
void experts_backward(const Device& device, StableIValue* stack);
void experts_backward_accumulate(const Device& device, StableIValue* stack);
void experts_variants(const Device& device, StableIValue* stack);

template <const Device& kDevice>
void register_operators(torch::stable::detail::StableLibrary& library) {
  using Count = uint64_t;
  library.impl("route", [](StableIValue* stack, Count, Count) { route(kDevice, stack); });
  library.impl("experts_forward",
               [](StableIValue* stack, Count, Count) { experts_forward(kDevice, stack); });
  library.impl("experts_backward",
               [](StableIValue* stack, Count, Count) { experts_backward(kDevice, stack); });
  library.impl("experts_backward.accumulate", [](StableIValue* stack, Count, Count) {
    experts_backward_accumulate(kDevice, stack);
  });
  library.impl("experts_variants",
               [](StableIValue* stack, Count, Count) { experts_variants(kDevice, stack); });
}

}  // namespace amoeba::ops
