// silu(gate) * up, the gated activation of every feed-forward network here (Shazeer, 2020).
#pragma once

#include <ATen/core/Tensor.h>

namespace amoeba::nn {

// gate_up [T, 2H], gate in the first H columns -> silu(gate) * up [T, H], computed in fp32.
at::Tensor swiglu(const at::Tensor& gate_up);

// silu(gate) * up into `out`, which may be neither, in the dtype of all three.
void swiglu_out(at::Tensor& out, const at::Tensor& gate, const at::Tensor& up);

}  // namespace amoeba::nn
