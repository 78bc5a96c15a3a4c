// Host batches to tensors on the device.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "amoeba/model.h"
#include "train/plain/data_loader.h"

namespace amoeba::train {

struct DeviceBatch {
  nn::ModelInput input;
  at::Tensor targets;  // [T] int64
};

DeviceBatch to_device(const MicroBatch& batch, at::Device device);

// [n] fp64
at::Tensor to_device(const std::vector<double>& numbers, at::Device device);

}  // namespace amoeba::train
