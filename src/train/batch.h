// Host batches to tensors on the device.
#pragma once

#include <ATen/core/Tensor.h>

#include "amoeba/model.h"
#include "train/plain/data_loader.h"

namespace amoeba::train {

struct DeviceBatch {
  nn::ModelInput input;
  at::Tensor targets;  // [T] int64
};

DeviceBatch to_device(const MicroBatch& batch, at::Device device);

}  // namespace amoeba::train
