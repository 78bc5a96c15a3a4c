// AdamW (Loshchilov and Hutter, 2019) on the flat buffers: one fused call a group.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/parameters.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

struct OptimizerStep {
  at::Tensor grad_norm;  // fp32 scalar, before clipping
  at::Tensor rejected;   // bool scalar: nothing was changed
};

class AdamW {
 public:
  AdamW(nn::ParameterStore& store, const OptimizerSection& options);

  // Clips the global gradient norm to max_norm (0: off) and updates masters and moments, unless
  // `reject` (bool scalar) is set or the norm is not finite or above norm_limit: then every old
  // value stays as it is. Decided on the device; no host read.
  // lr and norm_limit are fp64 scalars on the device.
  OptimizerStep step(const at::Tensor& lr, double max_norm, const at::Tensor& norm_limit,
                     const at::Tensor& reject);

  at::Tensor& num_steps() { return num_steps_; }  // fp32 scalar, accepted steps

 private:
  void update(nn::ParameterGroup& group, const at::Tensor& lr, const at::Tensor& grad_scale,
              const at::Tensor& found_inf);

  nn::ParameterStore& store_;
  OptimizerSection options_;
  at::Tensor num_steps_;
};

}  // namespace amoeba::train
